// The fp32 engine: the same job as engine_mma.cuh on the ordinary cores, in IEEE fp32.
//
// A warp's 32 lanes stand 8 (rows) x 4 (columns); a thread owns WM/8 x WN/4 accumulators. One step takes 4 of K: a 16-byte read gives
// either 4 of K for one row (K-major) or 4 rows for one of K (MN-major), so both layouts cost the same: with 8 x 8 accumulators,
// 16 reads for 256 multiply-adds. Which rows and columns a thread owns follows from the layout of the operand.
#pragma once
#include "tile.cuh"

DEVICE float4 load_shared4(u32 address) {
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(address) : "memory");
    return v;
}

template <class E, int BM_, int BN_, int WARPS_M, int WARPS_N, bool A_KMAJOR, bool B_KMAJOR> struct SimtEngine {
    static constexpr int BM = BM_, BN = BN_, THREADS = 32 * WARPS_M * WARPS_N;
    static constexpr int WM = BM / WARPS_M, WN = BN / WARPS_N;
    static constexpr int ROWS = WM / 8, PAIRS = WN / 8;
    static constexpr int OUT_ROWS = ROWS;
    static constexpr int STEPS = 8; // of 4 each, in 32 of K
    static constexpr bool double_buffered = false;
    using A = TileShape<E, BM, A_KMAJOR>;
    using B = TileShape<E, BN, B_KMAJOR>;
    static_assert(sizeof(E) == 4, "fp32 only");
    static_assert(A_KMAJOR || WM % 32 == 0, "an MN-major read gives a thread 4 rows, a warp 32");
    static_assert(B_KMAJOR || WN % 16 == 0, "an MN-major read gives a thread 4 columns, a warp 16");

    struct Fragments {
        u32 tile_a, tile_b;
        int step;
    };

    DEVICE static int lane_row() { return threadIdx.x & 7; }
    DEVICE static int lane_col() { return (threadIdx.x & 31) >> 3; }
    DEVICE static int warp_row() { return (threadIdx.x / 32) % WARPS_M * WM; }
    DEVICE static int warp_col() { return (threadIdx.x / 32) / WARPS_M * WN; }
    DEVICE static int row(int i) { return warp_row() + (A_KMAJOR ? 8 * i + lane_row() : (i >> 2) * 32 + lane_row() * 4 + (i & 3)); }
    DEVICE static int col(int j) { return warp_col() + (B_KMAJOR ? 8 * j + lane_col() * 2 : (j >> 1) * 16 + lane_col() * 4 + (j & 1) * 2); }

    // Registers are better spent on accumulators: operands are read where they are used, and other warps hide the wait.
    DEVICE static void load(Fragments &f, u32 tile_a, u32 tile_b, int step) { f.tile_a = tile_a, f.tile_b = tile_b, f.step = step; }

    DEVICE static void multiply(float (&acc)[ROWS][PAIRS][2], Fragments &f) {
        float a[ROWS][4];
        if constexpr (A_KMAJOR) {
            const u32 base = (f.tile_a + (warp_row() + lane_row()) * 128 + (lane_row() << 4)) ^ (f.step << 4);
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
                const float4 v = load_shared4(base + i * 8 * 128);
                a[i][0] = v.x, a[i][1] = v.y, a[i][2] = v.z, a[i][3] = v.w;
            }
        } else {
            const u32 base = f.tile_a + warp_row() * 4 + (lane_row() << 4);
#pragma unroll
            for (int k = 0; k < 4; k++)
#pragma unroll
                for (int i = 0; i < ROWS; i += 4) {
                    const float4 v = load_shared4((base ^ (k << 5)) + (4 * f.step + k) * A::ROW_BYTES + i * 32);
                    a[i][k] = v.x, a[i + 1][k] = v.y, a[i + 2][k] = v.z, a[i + 3][k] = v.w;
                }
        }
        if constexpr (B_KMAJOR) {
            const u32 base = (f.tile_b + (warp_col() + 2 * lane_col()) * 128 + (lane_col() << 5)) ^ (f.step << 4);
#pragma unroll
            for (int j = 0; j < PAIRS; j++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const float4 v = load_shared4((base ^ (e << 4)) + e * 128 + j * 8 * 128);
                    const float b[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
                    for (int k = 0; k < 4; k++)
#pragma unroll
                        for (int i = 0; i < ROWS; i++) acc[i][j][e] = fmaf(a[i][k], b[k], acc[i][j][e]);
                }
        } else {
            const u32 base = f.tile_b + warp_col() * 4 + (lane_col() << 4);
#pragma unroll
            for (int k = 0; k < 4; k++)
#pragma unroll
                for (int j = 0; j < PAIRS; j += 2) {
                    const float4 v = load_shared4((((base + (j & 2) * 32) ^ (k << 5)) + (j & ~2) * 32) + (4 * f.step + k) * B::ROW_BYTES);
                    const float b[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
                    for (int q = 0; q < 4; q++)
#pragma unroll
                        for (int i = 0; i < ROWS; i++) acc[i][j + q / 2][q & 1] = fmaf(a[i][k], b[q], acc[i][j + q / 2][q & 1]);
                }
        }
    }
    DEVICE static void merge(float (&)[ROWS][PAIRS][2], u32) {}
};
