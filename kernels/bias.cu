// bias_add        y[b][j] += bias[j]                    y (B, cols); bias is fp32, as all master weights are
// bias_gradient   db[j] = sum over b of dy[b][j]        dy (B, cols), db fp32; or, with _sgd, the step on bias in place
//
// Reads     y and bias; dy
// Writes    y; db, or bias and its velocity
// Launches  1 each. Bytes: 2 B cols elements; B cols elements.
// Wins      where a library product has no epilogue for it.  Loses: to an epilogue that has the sums in registers already.
//
// bias_add: ceil(B * ceil(cols / 4) / 256) blocks of 256 threads. bias_gradient: ceil(cols / 32) blocks of 1024 threads: 32 columns by 32
// groups of rows, summed in a fixed order, so the result does not depend on timing.
#include "common.cuh"
#include "sgd.cuh"

extern "C" __global__ void __launch_bounds__(256) bias_add(T *y, const float *bias, int rows, int cols) {
    const u32 quads = (cols + 3) / 4, at = blockIdx.x * 256 + threadIdx.x; // 32 bits: a 64-bit division costs more than the addition
    const int row = at / quads, col = at % quads * 4;
    if (row >= rows) return;
    T *p = y + (u64)row * cols + col;
    float b[4];
    load_quad(bias + col, cols - col, b);
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const int count = cols - col - i;
        const float2 v = load_pair(p + i, count);
        store_pair(p + i, count, v.x + b[i], v.y + b[i + 1]);
    }
}

// Column j's sum, in the threads of the first 32; 1024 threads, 33 * 32 floats of scratch.
DEVICE float column_sum(const T *dy, int rows, int cols, int col, float (*scratch)[33]) {
    const int lane = threadIdx.x & 31, group = threadIdx.x >> 5;
    float sum = 0.f;
    if (col < cols) {
#pragma unroll 4
        for (int row = group; row < rows; row += 32) sum += to_float(dy[(u64)row * cols + col]);
    }
    scratch[group][lane] = sum;
    __syncthreads();
    float total = 0.f;
    if (group == 0)
        for (int g = 0; g < 32; g++) total += scratch[g][lane];
    return total;
}

extern "C" __global__ void __launch_bounds__(1024) bias_gradient(const T *dy, float *db, int rows, int cols) {
    __shared__ float scratch[32][33];
    const int col = blockIdx.x * 32 + (threadIdx.x & 31);
    const float sum = column_sum(dy, rows, cols, col, scratch);
    if (threadIdx.x < 32 && col < cols) db[col] = sum;
}

extern "C" __global__ void __launch_bounds__(1024)
    bias_gradient_sgd(const T *dy, float *bias, float *velocity, const float *lr, const float *scale, float momentum, float weight_decay, int nesterov, int rows, int cols) {
    __shared__ float scratch[32][33];
    const int col = blockIdx.x * 32 + (threadIdx.x & 31);
    const float sum = column_sum(dy, rows, cols, col, scratch);
    if (threadIdx.x < 32 && col < cols) {
        float w = bias[col], v = velocity[col];
        sgd_step(sgd_settings(lr, scale, momentum, weight_decay, nesterov), sum, w, v);
        bias[col] = w, velocity[col] = v;
    }
}
