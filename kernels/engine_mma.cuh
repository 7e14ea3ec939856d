// The tensor-core engine: a block's warps multiply one stage of two operand tiles with mma.sync (sm_80 and later).
//
// A warp owns WM x WN of the block's BM x BN tile, as 16 x 8 fragments. One step takes 32 bytes of K: 16 bf16 (m16n8k16) or 8 fp32
// (m16n8k8, TF32). Measured in bytes the two precisions look the same, so they share all code but the mma and the TF32 rounding.
// Accumulators: acc[i][j][e] is row 8 i + (lane / 4), column 8 j + 2 (lane % 4) + e of the warp's tile.
//
// SLICES 2: two groups of warps take the same tile, each one half of every stage's K, and merge at the end. A block with few warps then still
// has large warp tiles, and large warp tiles read shared memory less often: in bf16,
// 64 x 64 takes 16 bytes of it for 256 products and 32 x 64 takes 24.
//
// TF32 operands are rounded to nearest (cvt.rna) after they are read from shared memory: left alone, the tensor core drops the low 13
// bits, and truncation doubles the error and gives it a sign. cvt.rna is two instructions, because a NaN must stay one; with
// TF32_FAST_ROUND 1 it is one multiplication by 1 + 0.69 * 2^-11, after which truncation is right on average (and exact where the operand
// already was TF32): 6% more error, 2 to 5% less time.
//
// PRECISION 3, emulated fp32: an operand x is split into hi, x rounded to TF32, and lo = x - hi, which is exact, and
// a b = a_hi b_hi + a_hi b_lo + a_lo b_hi + a_lo b_lo, of which the last is left out: at most 2^-22 of the product, 2^-25 as a rule. The tensor
// core takes 11 of lo's 12 bits: another 2^-23 at most, to either side. It truncates when it adds, which over a long K would cost far more
// than fp32 does; so the three products of one step, the small ones first, start from zero and are added to the sums outside, in
// fp32, to nearest. Range: that of fp32. An infinity becomes NaN (inf - inf), as does what rounds to one, from 2^128 - 2^116 on; below
// 2^-115 lo is denormal and loses bits, so that the smallest normal numbers are as good as TF32's.
#pragma once
#include "tile.cuh"

DEVICE void ldmatrix4(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
DEVICE void ldmatrix4_trans(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
#ifndef TF32_FAST_ROUND
#define TF32_FAST_ROUND 0
#endif
DEVICE u32 round_tf32(u32 v) {
    if (TF32_FAST_ROUND) return __float_as_uint(__uint_as_float(v) * 1.000339f);
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(v) : "f"(__uint_as_float(v)));
    return v;
}
// v becomes hi, rounded as cvt.rna does it; lo is returned. A NaN may be lost from hi, but never from lo.
DEVICE u32 split_tf32(u32 &v) {
    const float whole = __uint_as_float(v);
    v = (v + 0x1000u) & 0xffffe000u;
    return __float_as_uint(whole - __uint_as_float(v));
}
// c and d: the two rows of a 16 x 8 fragment, 8 apart.
DEVICE void mma(float (&c)[2], float (&d)[2], const u32 (&a)[4], const u32 (&b)[2], bf16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(d[0]), "+f"(d[1]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEVICE void mma(float (&c)[2], float (&d)[2], const u32 (&a)[4], const u32 (&b)[2], float) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(d[0]), "+f"(d[1]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <class E, int BM_, int BN_, int WARPS_M, int WARPS_N, bool A_KMAJOR, bool B_KMAJOR, int SLICES> struct MmaEngine {
    static constexpr int BM = BM_, BN = BN_, THREADS = 32 * WARPS_M * WARPS_N * SLICES;
    static constexpr int WM = BM / WARPS_M, WN = BN / WARPS_N;
    static constexpr int ROWS = WM / 8, PAIRS = WN / 8; // a thread's accumulators: ROWS x PAIRS x 2
    static constexpr int OUT_ROWS = ROWS / SLICES;      // and, after merge(), what of them it finishes
    static constexpr int STEPS = 4 / SLICES;            // of 32 bytes each, in 128 bytes of K
    static constexpr bool emulates = sizeof(E) == 4 && PRECISION == 3;
    static constexpr bool double_buffered = !emulates; // beside split operands there is no room for the next ones
    using A = TileShape<E, BM, A_KMAJOR>;
    using B = TileShape<E, BN, B_KMAJOR>;
    static_assert(SLICES == 1 || SLICES == 2, "a step is either group's");
    static_assert((THREADS & (THREADS - 1)) == 0, "merge() finds its partner by a bit");
    static_assert(WM % 16 == 0 && WN % 16 == 0, "fragments are 16 x 8 and B is read two at a time");
    static_assert(sizeof(E) == 2 || ((A_KMAJOR || WM % 32 == 0) && (B_KMAJOR || WN % 32 == 0)), "the fp32 swizzle permutes 32 columns");

    struct Fragments {
        u32 a[WM / 16][4], b[WN / 8][2];
    };

    DEVICE static int warp_row() { return (threadIdx.x / 32) % WARPS_M * WM; }
    DEVICE static int warp_col() { return (threadIdx.x / 32) / WARPS_M % WARPS_N * WN; }
    DEVICE static int slice() { return SLICES == 1 ? 0 : threadIdx.x / (THREADS / SLICES); }
    // Where accumulator acc[i][j][0] lies in the block's tile, after merge().
    DEVICE static int row(int i) { return warp_row() + slice() * (WM / SLICES) + 8 * i + (threadIdx.x & 31) / 4; }
    DEVICE static int col(int j) { return warp_col() + 8 * j + (threadIdx.x & 3) * 2; }

    // Stages start on a multiple of a row, and warp tiles are powers of two, so moving by a chunk in a swizzled row is an XOR on the address:
    // a few address registers serve all fragments and steps.
    static_assert((WM & (WM - 1)) == 0 && (WN & (WN - 1)) == 0, "powers of two");
    DEVICE static void load(Fragments &f, u32 tile_a, u32 tile_b, int step_in_slice) {
        const int lane = threadIdx.x & 31, step = step_in_slice + slice() * STEPS;
        // A: 16 x 32 bytes at a time, as four 8 x 16-byte matrices: top, bottom, then the same for the second half of K.
        if constexpr (A_KMAJOR) {
            const u32 base = (tile_a + (warp_row() + (lane & 15)) * 128 + (((lane >> 4) ^ (lane & 7)) << 4)) ^ (step << 5);
#pragma unroll
            for (int i = 0; i < WM / 16; i++) ldmatrix4(f.a[i], base + i * 16 * 128);
        } else if constexpr (sizeof(E) == 2) {
            const u32 base = tile_a + ((lane & 7) + (lane >> 4) * 8) * A::ROW_BYTES + (((warp_row() / 8 + ((lane >> 3) & 1)) ^ (lane & 7)) << 4);
#pragma unroll
            for (int i = 0; i < WM / 16; i++) ldmatrix4_trans(f.a[i], (base ^ (i << 5)) + 16 * step * A::ROW_BYTES);
        } else {
            const int g = lane >> 2, t = lane & 3;
            const u32 base = tile_a + t * A::ROW_BYTES + warp_row() * 4 + (((g >> 2) ^ (2 * t)) << 4) + (g & 3) * 4;
#pragma unroll
            for (int i = 0; i < WM / 16; i++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const int c = 4 * i + 2 * h; // chunk of column 16 i + 8 h
                    const u32 at = (base ^ ((c & 7) << 4)) + (c & ~7) * 16 + 8 * step * A::ROW_BYTES;
                    f.a[i][h] = load_shared(at);
                    f.a[i][h + 2] = load_shared(at + 4 * A::ROW_BYTES);
                }
        }
        // B: two 8-column fragments at a time, both halves of K of the first, then of the second.
        if constexpr (B_KMAJOR) {
            const u32 base = (tile_b + (warp_col() + (lane & 7) + (lane >> 4) * 8) * 128 + ((((lane >> 3) & 1) ^ (lane & 7)) << 4)) ^ (step << 5);
#pragma unroll
            for (int j = 0; j < WN / 16; j++) {
                u32 r[4];
                ldmatrix4(r, base + j * 16 * 128);
                f.b[2 * j][0] = r[0], f.b[2 * j][1] = r[1], f.b[2 * j + 1][0] = r[2], f.b[2 * j + 1][1] = r[3];
            }
        } else if constexpr (sizeof(E) == 2) {
            const u32 base = tile_b + (lane & 15) * B::ROW_BYTES + (((warp_col() / 8 + (lane >> 4)) ^ (lane & 7)) << 4);
#pragma unroll
            for (int j = 0; j < WN / 16; j++) {
                u32 r[4];
                ldmatrix4_trans(r, (base ^ (j << 5)) + 16 * step * B::ROW_BYTES);
                f.b[2 * j][0] = r[0], f.b[2 * j][1] = r[1], f.b[2 * j + 1][0] = r[2], f.b[2 * j + 1][1] = r[3];
            }
        } else {
            const int g = lane >> 2, t = lane & 3;
            const u32 base = tile_b + t * B::ROW_BYTES + warp_col() * 4 + (((g >> 2) ^ (2 * t)) << 4) + (g & 3) * 4;
#pragma unroll
            for (int j = 0; j < WN / 8; j++) {
                const int c = 2 * j; // chunk of column 8 j
                const u32 at = (base ^ ((c & 7) << 4)) + (c & ~7) * 16 + 8 * step * B::ROW_BYTES;
                f.b[j][0] = load_shared(at);
                f.b[j][1] = load_shared(at + 4 * B::ROW_BYTES);
            }
        }
    }

    // TF32 rounding, a row of fragments at a time. The fast kind is spread between the mma of the step before; cvt.rna was measured to
    // run best in one go right before use, while the SM's other warps keep the tensor cores busy.
    static constexpr bool rounds_ahead = sizeof(E) == 4 && TF32_FAST_ROUND && !emulates;
    DEVICE static void round(Fragments &f, int i) {
        constexpr int EACH = (WN / 8 + WM / 16 - 1) / (WM / 16);
#pragma unroll
        for (int q = 0; q < 4; q++) f.a[i][q] = round_tf32(f.a[i][q]);
#pragma unroll
        for (int j = i * EACH; j < (i + 1) * EACH && j < WN / 8; j++) f.b[j][0] = round_tf32(f.b[j][0]), f.b[j][1] = round_tf32(f.b[j][1]);
    }
    DEVICE static void round_all(Fragments &f) {
#pragma unroll
        for (int i = 0; i < WM / 16; i++) round(f, i);
    }

    // Emulated fp32: a row of fragments at a time, so that neighbouring mma do not wait for each other.
    DEVICE static void multiply(float (&acc)[ROWS][PAIRS][2], Fragments &f) {
        u32 b_lo[WN / 8][2];
#pragma unroll
        for (int j = 0; j < WN / 8; j++) b_lo[j][0] = split_tf32(f.b[j][0]), b_lo[j][1] = split_tf32(f.b[j][1]);
#pragma unroll
        for (int i = 0; i < WM / 16; i++) {
            u32 a_lo[4];
#pragma unroll
            for (int q = 0; q < 4; q++) a_lo[q] = split_tf32(f.a[i][q]);
            float part[WN / 8][2][2] = {};
#pragma unroll
            for (int j = 0; j < WN / 8; j++) mma(part[j][0], part[j][1], a_lo, f.b[j], E());
#pragma unroll
            for (int j = 0; j < WN / 8; j++) mma(part[j][0], part[j][1], f.a[i], b_lo[j], E());
#pragma unroll
            for (int j = 0; j < WN / 8; j++) mma(part[j][0], part[j][1], f.a[i], f.b[j], E());
#pragma unroll
            for (int j = 0; j < WN / 8; j++)
#pragma unroll
                for (int e = 0; e < 2; e++) acc[2 * i][j][e] += part[j][0][e], acc[2 * i + 1][j][e] += part[j][1][e];
        }
    }

    DEVICE static void multiply(float (&acc)[ROWS][PAIRS][2], Fragments &f, Fragments &next) {
        if (sizeof(E) == 4 && !rounds_ahead) round_all(f);
#pragma unroll
        for (int i = 0; i < WM / 16; i++) {
#pragma unroll
            for (int j = 0; j < WN / 8; j++) mma(acc[2 * i][j], acc[2 * i + 1][j], f.a[i], f.b[j], E());
            if (rounds_ahead) round(next, i);
        }
    }

    // Adds up the slices: each keeps half of the rows, in acc[0 .. OUT_ROWS], and passes the other half through shared memory.
    DEVICE static void merge(float (&acc)[ROWS][PAIRS][2], u32 smem) {
        if constexpr (SLICES == 2) {
            constexpr int HALF = THREADS / 2, PARTS = OUT_ROWS * PAIRS / 2;
            const bool second = slice() == 1;
            const u32 mine = smem + threadIdx.x * 16, theirs = smem + (threadIdx.x ^ HALF) * 16;
            __syncthreads();
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
                const int i = p / (PAIRS / 2), j = p % (PAIRS / 2) * 2;
                const float(&a)[PAIRS][2] = acc[i], (&b)[PAIRS][2] = acc[i + OUT_ROWS];
                asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(mine + p * THREADS * 16), "f"(second ? a[j][0] : b[j][0]), "f"(second ? a[j][1] : b[j][1]),
                             "f"(second ? a[j + 1][0] : b[j + 1][0]), "f"(second ? a[j + 1][1] : b[j + 1][1]) : "memory");
            }
            __syncthreads();
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
                const int i = p / (PAIRS / 2), j = p % (PAIRS / 2) * 2;
                float4 v;
                asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(theirs + p * THREADS * 16) : "memory");
                const float other[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
                for (int e = 0; e < 4; e++) acc[i][j + e / 2][e & 1] = (second ? acc[i + OUT_ROWS][j + e / 2][e & 1] : acc[i][j + e / 2][e & 1]) + other[e];
            }
        }
    }
};
