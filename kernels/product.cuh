// One tile of a product, from global memory to accumulators: the pipeline that every matrix kernel here runs.
//
// STAGES stages of shared memory form a ring. While the engine multiplies one stage, cp.async fills the others; one barrier a stage.
// Fragments are read one step ahead of the multiply, across the stage boundary too, so that tensor cores do not wait for shared memory.
//
// Split K: when a product has too few tiles for the chip, SPLITS blocks share a tile, each with its own range of K. Each writes its
// partial sums to a workspace and waits for the others; then each adds up one slice of the tile, in the order of the ranges, and runs the
// epilogue for it. So the result does not depend on timing, and the sum is as parallel as the product was. (One block that adds up
// everything is simpler and was measured to take a third of the time of a small product: it waits for memory alone.)
// Because the blocks of a tile wait for each other they must be able to run at once: see the grid rule of each kernel.
#pragma once
#include "engine_mma.cuh"
#include "engine_simt.cuh"

#ifndef WARP_SLICES
#define WARP_SLICES 1 // 2: twice the warps, see engine_mma.cuh; not for PRECISION 0
#endif

#if PRECISION == 0
#if WARP_SLICES != 1
#error "the fp32 engine does not slice K"
#endif
template <class E, int BM, int BN, int WARPS_M, int WARPS_N, bool A_KMAJOR, bool B_KMAJOR>
using Engine = SimtEngine<E, BM, BN, WARPS_M, WARPS_N, A_KMAJOR, B_KMAJOR>;
#else
template <class E, int BM, int BN, int WARPS_M, int WARPS_N, bool A_KMAJOR, bool B_KMAJOR>
using Engine = MmaEngine<E, BM, BN, WARPS_M, WARPS_N, A_KMAJOR, B_KMAJOR, WARP_SLICES>;
#endif

template <class En> struct Accumulators {
    float v[En::ROWS][En::PAIRS][2];
};

// The ring: fill() issues the copies of K tile `tile` into stage `slot` and commits them as one group.
template <class E, class En, class SourceA, class SourceB> struct Ring {
    const SourceA &a;
    const SourceB &b;
    u32 smem;
    int k_begin, k_end, tiles;
    DEVICE void fill(int tile, int slot) const {
        if (tile < tiles) {
            const u32 at = smem + slot * (En::A::BYTES + En::B::BYTES);
            const int k = k_begin + tile * KTile<E>::K;
            load_tile<E, En::BM, En::THREADS>(at, a, k, k_end);
            load_tile<E, En::BN, En::THREADS>(at + En::A::BYTES, b, k, k_end);
        }
        cp_async_commit(); // an empty group keeps the count right
    }
};

// The block's BM x BN tile over K in [k_begin, k_end); k_begin is a multiple of the K tile.
template <class E, class En, int STAGES, class SourceA, class SourceB>
DEVICE void multiply_tile(Accumulators<En> &acc, u32 smem, const SourceA &a, const SourceB &b, int k_begin, int k_end) {
    constexpr int BK = KTile<E>::K, STAGE_BYTES = En::A::BYTES + En::B::BYTES;
    const int tiles = (k_end - k_begin + BK - 1) / BK;
#pragma unroll
    for (int i = 0; i < En::ROWS; i++)
#pragma unroll
        for (int j = 0; j < En::PAIRS; j++) acc.v[i][j][0] = acc.v[i][j][1] = 0.f;

    const Ring<E, En, SourceA, SourceB> ring{a, b, smem, k_begin, k_end, tiles};
    __syncthreads(); // a persistent block may still be reading its previous tile
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) ring.fill(s, s);
    cp_async_wait<STAGES - 2>();
    __syncthreads();

    typename En::Fragments fragments[2];
    int slot = 0, next = STAGES - 1; // the stage being multiplied; the one free to fill
    if constexpr (En::double_buffered) {
        En::load(fragments[0], smem, smem + En::A::BYTES, 0);
        if (En::rounds_ahead) En::round_all(fragments[0]);
    }
    for (int tile = 0; tile < tiles; tile++) {
        const u32 here = smem + slot * STAGE_BYTES;
        slot = slot + 1 == STAGES ? 0 : slot + 1;
        const u32 there = smem + slot * STAGE_BYTES;
        if constexpr (En::double_buffered) {
#pragma unroll
            for (int step = 0; step < En::STEPS; step++) {
                if (step == En::STEPS - 1) { // the next stage must have landed, and everyone must be done reading this one
                    cp_async_wait<STAGES - 2>();
                    __syncthreads();
                    En::load(fragments[(step + 1) & 1], there, there + En::A::BYTES, 0);
                } else {
                    En::load(fragments[(step + 1) & 1], here, here + En::A::BYTES, step + 1);
                }
                if (step == 0) ring.fill(tile + STAGES - 1, next);
                En::multiply(acc.v, fragments[step & 1], fragments[(step + 1) & 1]);
            }
        } else {
            ring.fill(tile + STAGES - 1, next);
#pragma unroll 1 // unrolled, reads of the next step crowd out accumulators; other warps hide the wait
            for (int step = 0; step < En::STEPS; step++) {
                En::load(fragments[0], here, here + En::A::BYTES, step);
                En::multiply(acc.v, fragments[0]);
            }
            cp_async_wait<STAGES - 2>();
            __syncthreads();
        }
        next = next + 1 == STAGES ? 0 : next + 1;
    }
    En::merge(acc.v, smem);
}

// The range of K that split `split` of SPLITS takes, in whole K tiles; the last may be shorter or, for a tiny K, empty.
template <class E, int SPLITS> DEVICE void split_range(int k, int split, int &begin, int &end) {
    constexpr int BK = KTile<E>::K;
    const int tiles = (k + BK - 1) / BK, each = (tiles + SPLITS - 1) / SPLITS;
    begin = min(split * each * BK, k);
    end = min(begin + each * BK, k);
}

// Hands every sum of the tile to `epilogue(i, j, first, second)`: two neighbours at (row(i), col(j)), and two at (row(i), col(j + 1)), j even.
// `workspace`: this tile's SPLITS x BM x BN floats. `counter`: this tile's, zero before and after: arrivals in the low half, departures in
// the high half.
template <class En, int SPLITS, class Epilogue>
DEVICE void finish_tile(const Accumulators<En> &acc, float *workspace, u32 *counter, int split, const Epilogue &epilogue) {
    constexpr int HALF = En::PAIRS / 2, PARTS = En::OUT_ROWS * HALF; // 16 bytes each, stored in the order of registers: every access is coalesced
    static_assert(En::PAIRS % 2 == 0 && PARTS % SPLITS == 0, "every split takes the same number of parts");
    if constexpr (SPLITS == 1) {
#pragma unroll
        for (int p = 0; p < PARTS; p++) {
            const int i = p / HALF, j = p % HALF * 2;
            epilogue(i, j, make_float2(acc.v[i][j][0], acc.v[i][j][1]), make_float2(acc.v[i][j + 1][0], acc.v[i][j + 1][1]));
        }
    } else {
        float4 *parts = (float4 *)workspace + threadIdx.x;
#pragma unroll
        for (int p = 0; p < PARTS; p++) {
            const int i = p / HALF, j = p % HALF * 2;
            parts[(split * PARTS + p) * En::THREADS] = make_float4(acc.v[i][j][0], acc.v[i][j][1], acc.v[i][j + 1][0], acc.v[i][j + 1][1]);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence(); // after the barrier it speaks for the whole block
            atomicAdd(counter, 1u);
            u32 seen;
            do {
                asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
            } while ((seen & 0xffffu) < SPLITS);
            if (atomicAdd(counter, 0x10000u) >> 16 == SPLITS - 1) *counter = 0; // all have seen all arrive: ready for the next launch
        }
        __syncthreads();
        constexpr int SLICE = PARTS / SPLITS;
#pragma unroll 4
        for (int q = 0; q < SLICE; q++) {
            const int p = split * SLICE + q;
            float sum[4] = {};
#pragma unroll
            for (int s = 0; s < SPLITS; s++) {
                float part[4];
                unpack16(load16_cg(parts + (s * PARTS + p) * En::THREADS), part, 0.f);
#pragma unroll
                for (int e = 0; e < 4; e++) sum[e] += part[e];
            }
            epilogue(p / HALF, p % HALF * 2, make_float2(sum[0], sum[1]), make_float2(sum[2], sum[3]));
        }
    }
}

// blockIdx.x, read where it stands: values derived from it again after a product need no registers during it.
DEVICE u32 block_index() {
    u32 v;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(v));
    return v;
}
