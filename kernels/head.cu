// The head and the loss. z (B, H), w (10, H) fp32, bias (10) fp32, labels (B) u8
//   head_forward    logits = z w^T + bias: (B, H) @ (H, 10) -> (B, 10)
//   head_loss       the same, then loss = mean over b of (log sum exp logits[b] - logits[b][label]),
//                   dlogits[b] = (softmax(logits[b]) - onehot(label)) / B, and how many rows are right
//   head_backward   dz = dlogits w: (B, 10) @ (10, H);  dw = dlogits^T z: (10, B) @ (B, H);  db = column sums of dlogits
//                   or, with _sgd, the step on w and bias in place of dw and db
//
// Reads     z once forward, once backward; w from L2
// Writes    10 floats a row; dz; dw
// Launches  1 forward with the loss, 1 backward with both gradients (a library: 2 products, bias, softmax, loss, 2 products, sums)
// Wins      with 10 classes always: a product 10 wide wastes a tensor core tile, and every pass is a stream over z.
// Loses     with many classes (write a product then).
//
// head_forward, head_loss: ceil(B / HEAD_ROWS) blocks of 256 threads; HEAD_ROWS rows share each read of w. `losses` (B floats) is
// scratch; `dlogits` may be null (an evaluation); `counter` is one u32, zero before and after: the last block adds up the losses in order, so the sum does not depend on timing.
// loss_log[*step] gets the mean and correct_log[*step] the number of rows that are right (step null: index 0).
// head_backward: ceil(H / 16) blocks of 1024 threads: 16 columns by 64 groups of rows. A block alone reads and writes its columns of w, so
// the update can be in place. The first block also does the bias. `dz` may be null (not wanted). Every pointer T or fp32 as declared.
#include "common.cuh"
#include "sgd.cuh"

#ifndef HEAD_ROWS
#define HEAD_ROWS 1
#endif
constexpr int CLASSES = 10, THREADS = 256;

// logits[r][c] of rows row0 .. row0 + HEAD_ROWS, in shared memory, for all threads.
DEVICE void head_logits(const T *z, const float *w, const float *bias, int row0, int batch, int hidden, float (*logits)[CLASSES], float (*scratch)[HEAD_ROWS * CLASSES]) {
    const float start = threadIdx.x < HEAD_ROWS * CLASSES ? bias[threadIdx.x % CLASSES] : 0.f;
    float sum[HEAD_ROWS][CLASSES] = {};
    for (int h = threadIdx.x * 4; h < hidden; h += THREADS * 4) {
        const int count = hidden - h;
        float a[HEAD_ROWS][4], b[CLASSES][4]; // all on their way at once
#pragma unroll
        for (int c = 0; c < CLASSES; c++) load_quad(w + (u64)c * hidden + h, count, b[c]);
#pragma unroll
        for (int r = 0; r < HEAD_ROWS; r++) load_quad(z + (u64)min(row0 + r, batch - 1) * hidden + h, count, a[r]);
#pragma unroll
        for (int r = 0; r < HEAD_ROWS; r++)
#pragma unroll
            for (int c = 0; c < CLASSES; c++)
#pragma unroll
                for (int e = 0; e < 4; e++) sum[r][c] = fmaf(a[r][e], b[c][e], sum[r][c]);
    }
#pragma unroll
    for (int r = 0; r < HEAD_ROWS; r++)
#pragma unroll
        for (int c = 0; c < CLASSES; c++) {
            const float s = warp_sum(sum[r][c]);
            if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5][r * CLASSES + c] = s;
        }
    __syncthreads();
    if (threadIdx.x < HEAD_ROWS * CLASSES) {
        float s = start;
#pragma unroll
        for (int warp = 0; warp < THREADS / 32; warp++) s += scratch[warp][threadIdx.x];
        logits[threadIdx.x / CLASSES][threadIdx.x % CLASSES] = s;
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(THREADS) head_forward(const T *z, const float *w, const float *bias, float *logits_out, int batch, int hidden) {
    __shared__ float logits[HEAD_ROWS][CLASSES], scratch[THREADS / 32][HEAD_ROWS * CLASSES];
    const int row0 = blockIdx.x * HEAD_ROWS;
    head_logits(z, w, bias, row0, batch, hidden, logits, scratch);
    const int row = row0 + threadIdx.x / CLASSES;
    if (threadIdx.x < HEAD_ROWS * CLASSES && row < batch) logits_out[(u64)row * CLASSES + threadIdx.x % CLASSES] = logits[threadIdx.x / CLASSES][threadIdx.x % CLASSES];
}

extern "C" __global__ void __launch_bounds__(THREADS)
    head_loss(const T *z, const float *w, const float *bias, const u8 *labels, float *dlogits, float *losses, u32 *counter, float *loss_log, u32 *correct_log, const u32 *step, int batch, int hidden) {
    __shared__ float logits[HEAD_ROWS][CLASSES], scratch[THREADS / 32][HEAD_ROWS * CLASSES], sums[THREADS / 32];
    __shared__ u32 arrived;
    const int row0 = blockIdx.x * HEAD_ROWS, row = row0 + threadIdx.x;
    const int label = threadIdx.x < HEAD_ROWS && row < batch ? labels[row] : 0; // asked for early: it arrives while the logits are computed
    head_logits(z, w, bias, row0, batch, hidden, logits, scratch);
    if (threadIdx.x < HEAD_ROWS && row < batch) { // one thread a row: ten classes are no work
        float top = logits[threadIdx.x][0], e[CLASSES], total = 0.f;
        int guess = 0;
#pragma unroll
        for (int c = 1; c < CLASSES; c++)
            if (logits[threadIdx.x][c] > top) top = logits[threadIdx.x][c], guess = c;
#pragma unroll
        for (int c = 0; c < CLASSES; c++) total += e[c] = expf(logits[threadIdx.x][c] - top);
        float at_label = 0.f;
#pragma unroll
        for (int c = 0; c < CLASSES; c++) {
            if (c == label) at_label = logits[threadIdx.x][c];
            if (dlogits) dlogits[(u64)row * CLASSES + c] = (e[c] / total - (c == label ? 1.f : 0.f)) / batch;
        }
        // A row's loss is at least 0, so its sign bit is free to say that the guess was right.
        const float loss = fmaxf(logf(total) + top - at_label, 0.f);
        losses[row] = loss != loss || total != total ? __uint_as_float(0x7fffffffu) : __uint_as_float(__float_as_uint(loss) | (guess == label ? 0x80000000u : 0u));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence(); // after the barrier it speaks for the whole block
        arrived = atomicAdd(counter, 1u);
        __threadfence();
    }
    __syncthreads();
    if (arrived != gridDim.x - 1) return;
    float sum = 0.f, right = 0.f;
    for (int b = threadIdx.x; b < batch; b += THREADS) {
        u32 v;
        asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(v) : "l"(losses + b) : "memory");
        sum += __uint_as_float(v & 0x7fffffffu);
        right += (float)(v >> 31);
    }
    sum = block_sum<THREADS>(sum, sums);
    right = block_sum<THREADS>(right, sums);
    if (threadIdx.x == 0) {
        const u32 at = step ? *step : 0;
        loss_log[at] = sum / batch;
        correct_log[at] = (u32)right;
        *counter = 0;
    }
}

// The gradients of a block's 16 columns: dz is written; dw (and, in block 0, db) go to `sink`, one value at a time.
template <class Sink> DEVICE void head_gradients(const T *z, const float *w, const float *dlogits, T *dz, int batch, int hidden, const Sink &sink) {
    constexpr int COLS = 16, GROUPS = 1024 / COLS, CHUNK = 256; // rows of dlogits that are kept in shared memory at a time
    __shared__ float scratch[32][COLS][CLASSES + 1];
    __shared__ float2 d_chunk[CHUNK * CLASSES / 2];
    const int lane = threadIdx.x % COLS, group = threadIdx.x / COLS, h = blockIdx.x * COLS + lane;
    float weights[CLASSES], dw[CLASSES] = {};
#pragma unroll
    for (int c = 0; c < CLASSES; c++) weights[c] = h < hidden ? w[(u64)c * hidden + h] : 0.f;
    for (int row0 = 0; row0 < batch; row0 += CHUNK) {
        const int rows = min(CHUNK, batch - row0);
        float a[CHUNK / GROUPS]; // asked for before the barrier, so that the two waits overlap
#pragma unroll
        for (int i = 0; i < CHUNK / GROUPS; i++) a[i] = group + i * GROUPS < rows && h < hidden ? to_float(z[(u64)(row0 + group + i * GROUPS) * hidden + h]) : 0.f;
        __syncthreads();
        for (int i = threadIdx.x; i < rows * CLASSES / 2; i += 1024) d_chunk[i] = ((const float2 *)(dlogits + (u64)row0 * CLASSES))[i];
        __syncthreads();
#pragma unroll
        for (int i = 0; i < CHUNK / GROUPS; i++) {
            const int row = group + i * GROUPS;
            if (row >= rows) break;
            float back = 0.f;
#pragma unroll
            for (int c = 0; c < CLASSES; c += 2) {
                const float2 d = d_chunk[row * (CLASSES / 2) + c / 2];
                dw[c] = fmaf(d.x, a[i], dw[c]), dw[c + 1] = fmaf(d.y, a[i], dw[c + 1]);
                back = fmaf(d.x, weights[c], fmaf(d.y, weights[c + 1], back));
            }
            if (dz && h < hidden) dz[(u64)(row0 + row) * hidden + h] = from_float<T>(back);
        }
    }
#pragma unroll
    for (int c = 0; c < CLASSES; c++) {
        dw[c] += __shfl_xor_sync(0xffffffffu, dw[c], COLS); // the warp's other group of rows
        if (threadIdx.x % 32 < COLS) scratch[threadIdx.x / 32][lane][c] = dw[c];
    }
    __syncthreads();
    if (threadIdx.x < COLS * CLASSES && h < hidden) { // groups 0 .. 9 sum a class each
        float sum = 0.f;
        for (int warp = 0; warp < 32; warp++) sum += scratch[warp][lane][group];
        sink((u64)group * hidden + h, sum, false);
    }
    if (blockIdx.x == 0 && threadIdx.x >= 512 && threadIdx.x / 32 - 16 < CLASSES) { // in the first block, other warps: the bias
        const int c = threadIdx.x / 32 - 16;
        float sum = 0.f;
        for (int row = threadIdx.x % 32; row < batch; row += 32) sum += dlogits[(u64)row * CLASSES + c];
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) sink(c, sum, true);
    }
}

extern "C" __global__ void __launch_bounds__(1024) head_backward(const T *z, const float *w, const float *dlogits, T *dz, float *dw, float *db, int batch, int hidden) {
    head_gradients(z, w, dlogits, dz, batch, hidden, [&](u64 at, float gradient, bool bias) { (bias ? db : dw)[at] = gradient; });
}

extern "C" __global__ void __launch_bounds__(1024)
    head_backward_sgd(const T *z, float *w, float *w_velocity, float *bias, float *bias_velocity, const float *dlogits, T *dz, const float *lr, const float *scale, float momentum,
                      float weight_decay, int nesterov, int batch, int hidden) {
    const Sgd sgd = sgd_settings(lr, scale, momentum, weight_decay, nesterov);
    head_gradients(z, w, dlogits, dz, batch, hidden, [&](u64 at, float gradient, bool is_bias) {
        float *p = (is_bias ? bias : w) + at, *v = (is_bias ? bias_velocity : w_velocity) + at;
        float weight = *p, speed = *v;
        Sgd own = sgd;
        if (is_bias) own.weight_decay = 0.f; // weights decay, biases do not
        sgd_step(own, gradient, weight, speed);
        *p = weight, *v = speed;
    });
}
