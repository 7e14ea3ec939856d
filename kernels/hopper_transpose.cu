// x (rows, columns) fp32 -> out (columns, pitch) fp32: the operand of TF32's weight gradient, because wgmma reads TF32 along K only.
//
// Reads     x        Writes    out; columns `rows` to `pitch` of it are left alone
// Launches  1, a block of 256 threads for 32 x 32 elements: grid ceil(columns / 32) * ceil(rows / 32)
#include "hopper_tma.cuh"

extern "C" __global__ void __launch_bounds__(256) hopper_transpose(const float *x, float *out, int rows, int columns, int pitch) {
    __shared__ float tile[32][33];
    wait_for_last();
    const int across = (columns + 31) / 32, row0 = blockIdx.x / across * 32, col0 = blockIdx.x % across * 32, lane = threadIdx.x & 31;
#pragma unroll
    for (int i = threadIdx.x / 32; i < 32; i += 8)
        if (row0 + i < rows && col0 + lane < columns) tile[i][lane] = x[offset(row0 + i, columns) + col0 + lane];
    __syncthreads();
#pragma unroll
    for (int i = threadIdx.x / 32; i < 32; i += 8)
        if (col0 + i < columns && row0 + lane < rows) out[offset(col0 + i, pitch) + row0 + lane] = tile[lane][i];
    let_next_start();
}
