// One stage of a product that sums over the batch: rows of dy^T, columns of x, images from `k` on.
#pragma once
#include "hopper_product.cuh"

// `dgrad`: dy, box (128 bytes, K_TILE). `x`: box (64, 64), or TF32: x^T, box (32, COLS), or fp32-emulated: its planes, lo `x_rows` rows below hi. The batch's images begin
// at row `image0` of x; at column `image0` of x^T, a multiple of 4, because a copy begins at a whole 16 bytes of a row: elsewhere it is an illegal instruction.
DEVICE void load_rows_over_batch(u32 a, u32 full, const TensorMap &dgrad, int k, int row0) {
    constexpr int WIDE = PRECISION == 2 ? 64 : 32;
#pragma unroll
    for (int block = 0; block < ROWS / WIDE; block++) tma_load(a + block * (K_TILE * 128), dgrad, full, row0 + block * WIDE, k);
}
DEVICE void load_columns_over_batch(u32 b, u32 full, const TensorMap &x, int k, int col0, int image0, int x_rows) {
    if (PRECISION == 1) {
        tma_load(b, x, full, image0 + k, col0);
    } else {
#pragma unroll
        for (int plane = 0; plane < PLANES; plane++)
#pragma unroll
            for (int block = 0; block < COLS / 64; block++) tma_load(b + plane * (COLS * 128) + block * (64 * 128), x, full, col0 + block * 64, image0 + k + plane * x_rows);
    }
}
DEVICE void load_over_batch(u32 a, u32 b, u32 full, const TensorMap &dgrad, const TensorMap &x, int k, int row0, int col0, int image0, int x_rows) {
    load_rows_over_batch(a, full, dgrad, k, row0);
    load_columns_over_batch(b, full, x, k, col0, image0, x_rows);
}
