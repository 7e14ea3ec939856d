// One stage of a product that sums over the batch: rows of dy^T, columns of x, images from `k` on.
#pragma once
#include "hopper_product.cuh"

#ifndef DY_TRANSPOSED
#define DY_TRANSPOSED 0
#endif
static_assert(!DY_TRANSPOSED || PRECISION == 1, "other precisions read what they sum over either way");

// `dgrad`: dy, box (128 bytes, K_TILE / SHARE_A); DY_TRANSPOSED: dy^T, box (32, ROWS / SHARE_A). `x`: box (64, 64 / SHARE_B), or TF32: x^T, box (32, COLS / SHARE_B), or
// fp32-emulated: its planes, lo `x_rows` rows below hi. The batch's images begin at row `image0` of x. Blocks that share an operand load a part of each box for all.
template <class... C> DEVICE void load_part(bool shared, u32 mask, u32 to, const TensorMap &map, u32 full, C... at) {
    if (shared) tma_share(to, map, full, mask, at...);
    else tma_load(to, map, full, at...);
}
DEVICE void load_dy(const Place &p, u32 a, u32 full, const TensorMap &dgrad, int k, int row0) {
    constexpr int WIDE = PRECISION == 2 ? 64 : 32, PART = (DY_TRANSPOSED ? ROWS : K_TILE) / SHARE_A;
    const u32 mask = sharers_of_a(p), part = p.a * PART;
    if (DY_TRANSPOSED) load_part(SHARE_A > 1, mask, a + part * 128, dgrad, full, k, row0 + (int)part);
#pragma unroll
    for (int block = 0; block < (DY_TRANSPOSED ? 0 : ROWS / WIDE); block++)
        load_part(SHARE_A > 1, mask, a + block * (K_TILE * 128) + part * 128, dgrad, full, row0 + block * WIDE, k + (int)part);
}
DEVICE void load_x(const Place &p, u32 b, u32 full, const TensorMap &x, int k, int col0, int image0, int x_rows) {
    constexpr int PART = (PRECISION == 1 ? COLS : K_TILE) / SHARE_B;
    const u32 mask = sharers_of_b(p), part = p.b * PART;
    if (PRECISION == 1) {
        load_part(SHARE_B > 1, mask, b + part * 128, x, full, image0 + k, col0 + (int)part);
    } else {
#pragma unroll
        for (int plane = 0; plane < PLANES; plane++)
#pragma unroll
            for (int block = 0; block < COLS / 64; block++)
                load_part(SHARE_B > 1, mask, b + plane * (COLS * 128) + block * (64 * 128) + part * 128, x, full, col0 + block * 64, image0 + k + (int)part + plane * x_rows);
    }
}
DEVICE void load_over_batch(const Place &p, u32 a, u32 b, u32 full, const TensorMap &dgrad, const TensorMap &x, int k, int row0, int col0, int image0, int x_rows) {
    load_dy(p, a, full, dgrad, k, row0), load_x(p, b, full, x, k, col0, image0, x_rows);
}
