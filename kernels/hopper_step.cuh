// What kernels share that step weights as they stream past, and multiply them in the same breath (batches of up to 64 images, mma.sync).
#pragma once
#include "engine_mma.cuh"
#include "hopper_stream.cuh"
#include "sgd.cuh"

constexpr int IMAGES = 64;                  // of a batch
constexpr int K_STEP = 32 / (int)sizeof(T); // of K in one step of mma

// threadIdx.x, asked for again: the loop over the weights has no register left for what comes after it.
DEVICE int thread() {
    int t;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(t));
    return t;
}

DEVICE void store_shared(u32 address, u32 v) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory"); }
DEVICE void store_shared16(u32 address, uint4 v) { asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory"); }
// As products read it: TF32 rounded, others as it is.
DEVICE u32 as_operand(float v) { return PRECISION == 1 ? round_tf32(__float_as_uint(v)) : __float_as_uint(v); }

// Sums of a warp, rows lane / 4 + 8 h and columns 2 (lane % 4) + e, as a left operand of the product that follows: the columns are K. bf16 takes 16 of them, from two such
// tiles; fp32 takes 8, in an order of its own: index c of K is column 2 c, and index 4 + c column 2 c + 1. Right operands that meet it are in that order too.
DEVICE void as_left(u32 (&a)[4], const float (&first)[2][2], const float (&second)[2][2]) {
    if constexpr (sizeof(T) == 2) {
        a[0] = pack_bf16(first[0][0], first[0][1]), a[1] = pack_bf16(first[1][0], first[1][1]);
        a[2] = pack_bf16(second[0][0], second[0][1]), a[3] = pack_bf16(second[1][0], second[1][1]);
    } else {
#pragma unroll
        for (int q = 0; q < 4; q++) a[q] = as_operand(first[q & 1][q >> 1]);
    }
}

// sums += A B for one step of K, in the precision asked for.
DEVICE void multiply(float (&sums)[2][2], const u32 (&a)[4], const u32 (&b)[2]) {
#if PRECISION == 3
    u32 a_hi[4], a_lo[4], b_hi[2], b_lo[2];
    float part[2][2] = {};
#pragma unroll
    for (int q = 0; q < 4; q++) a_hi[q] = a[q], a_lo[q] = split_tf32(a_hi[q]);
#pragma unroll
    for (int q = 0; q < 2; q++) b_hi[q] = b[q], b_lo[q] = split_tf32(b_hi[q]);
    mma(part[0], part[1], a_lo, b_hi, T());
    mma(part[0], part[1], a_hi, b_lo, T());
    mma(part[0], part[1], a_hi, b_hi, T());
#pragma unroll
    for (int e = 0; e < 2; e++) sums[0][e] += part[0][e], sums[1][e] += part[1][e];
#else
    mma(sums[0], sums[1], a, b, T());
#endif
}

constexpr int IMAGE_STEPS = IMAGES / K_STEP; // of a product that sums over images
