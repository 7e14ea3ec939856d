// A row of fp32 as two rows of fp16, x = (hi + lo) * down: the operand of fp32-emulated that wgmma reads from shared memory.
//
// hi is x * 2^s rounded to fp16 and lo what is left, where s puts the largest element of the row between 2^14 and 2^15 (fp16 ends at 65504). Together they
// keep 22 bits of every element down to 2^-18 of the row's largest; what is smaller keeps an absolute error of 2^-40 of it. Rows whose largest element
// is below 2^-112 lose bits; infinities and NaN become NaN.
#pragma once
#include "hopper_product.cuh"

// THREADS threads that meet at barrier 1; `count` is a multiple of 4; `most` holds a float a warp.
template <int THREADS> DEVICE void split_row(const float *row, u16 *hi, u16 *lo, float *down, int count, float *most) {
    float largest = 0.f;
    for (int i = threadIdx.x * 4; i < count; i += THREADS * 4) {
        float v[4];
        unpack16(load16_cg(row + i), v, 0.f);
#pragma unroll
        for (int e = 0; e < 4; e++) largest = fmaxf(largest, fabsf(v[e]));
    }
    largest = warp_max(largest);
    barrier_among(1, THREADS); // `most` may still be read for the row before
    if ((threadIdx.x & 31) == 0) most[threadIdx.x / 32] = largest;
    barrier_among(1, THREADS);
#pragma unroll
    for (int w = 0; w < THREADS / 32; w++) largest = fmaxf(largest, most[w]);
    const Scale scale = scale_of(largest);
    if (threadIdx.x == 0) *down = scale.down;
    for (int i = threadIdx.x * 4; i < count; i += THREADS * 4) {
        float v[4], h[4];
        unpack16(load16_cg(row + i), v, 0.f);
#pragma unroll
        for (int e = 0; e < 4; e++) v[e] *= scale.up;
        const u32 a = pack_fp16(v[0], v[1]), b = pack_fp16(v[2], v[3]);
        unpack_fp16(a, h[0], h[1]), unpack_fp16(b, h[2], h[3]);
        *(uint2 *)(hi + i) = make_uint2(a, b);
        *(uint2 *)(lo + i) = make_uint2(pack_fp16(v[0] - h[0], v[1] - h[1]), pack_fp16(v[2] - h[2], v[3] - h[3]));
    }
}
