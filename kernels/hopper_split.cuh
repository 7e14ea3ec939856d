// A row of fp32 as two rows of fp16, x = (hi + lo) * down: the operand of fp32-emulated that wgmma reads from shared memory.
//
// hi is x * 2^s rounded to fp16 and lo what is left, where s puts the largest element of the row between 2^14 and 2^15 (fp16 ends at 65504). Together they
// keep 22 bits of every element down to 2^-18 of the row's largest; what is smaller keeps an absolute error of 2^-40 of it. Rows whose largest element
// is below 2^-112 lose bits; infinities and NaN become NaN.
#pragma once
#include "hopper_product.cuh"

// Elements `begin` to `end` of a row, multiples of 4, by THREADS threads that meet at barrier `meet`. `load(i)` gives elements i to i + 3; of a thread's first KEPT_VECTORS
// such vectors, all of them under way together, it is asked once, of what is left of a longer row twice. `write(i, v)` gets each once. `most` holds a float a warp.
template <int THREADS, int KEPT_VECTORS, class Load, class Write>
DEVICE void split_row(const Load &load, const Write &write, u16 *hi, u16 *lo, float *down, int begin, int end, int meet, float *most) {
    constexpr int STEP = THREADS * 4;
    const int thread = threadIdx.x % THREADS, first = begin + thread * 4, left = first + KEPT_VECTORS * STEP;
    const auto largest_of = [](float4 v) { return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))); };
    float largest = 0.f;
    float4 kept[KEPT_VECTORS];
#pragma unroll
    for (int i = 0; i < KEPT_VECTORS; i++) kept[i] = load(min(first + i * STEP, end - 4)); // past the end the last one again, so that no load waits for a branch
#pragma unroll
    for (int i = 0; i < KEPT_VECTORS; i++) largest = fmaxf(largest, largest_of(kept[i]));
#pragma unroll 4
    for (int i = left; i < end; i += STEP) largest = fmaxf(largest, largest_of(load(i)));
    largest = warp_max(largest);
    barrier_among(meet, THREADS); // `most` may still be read for the row before
    if ((thread & 31) == 0) most[thread / 32] = largest;
    barrier_among(meet, THREADS);
#pragma unroll
    for (int w = 0; w < THREADS / 32; w++) largest = fmaxf(largest, most[w]);
    const Scale scale = scale_of(largest);
    if (thread == 0) *down = scale.down;
    const auto put = [&](int i, float4 v) {
        write(i, v);
        v.x *= scale.up, v.y *= scale.up, v.z *= scale.up, v.w *= scale.up;
        uint2 near, left;
        split_fp16(v.x, v.y, near.x, left.x), split_fp16(v.z, v.w, near.y, left.y);
        *(uint2 *)(hi + i) = near, *(uint2 *)(lo + i) = left;
    };
#pragma unroll
    for (int i = 0; i < KEPT_VECTORS; i++)
        if (first + i * STEP < end) put(first + i * STEP, kept[i]);
#pragma unroll 4
    for (int i = left; i < end; i += STEP) put(i, load(i));
}
