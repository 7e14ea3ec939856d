// Blocks that run at once pass fp32 numbers to each other through L2, without a barrier, a flag or a fence: every word says itself whether it is new.
//
// The last bit of each word is the parity of the step that wrote it; whoever reads asks again until the parity is the one that it waits for. So a number
// costs one trip to L2 and one back, where data, fence, counter, polling and then the data would be three. Price: one of 24 bits of the significand.
// It holds because a word has one writer, is written once a step, and is read before it is written again, which the reader's next words tell the writer.
// Buffers begin as zeros: as if a step of parity 0 had written them.
#pragma once
#include "common.cuh"

DEVICE u32 marked(float v, u32 parity) { return (__float_as_uint(v) & ~1u) | parity; }
DEVICE bool stale(u32 v, u32 parity) { return (v ^ parity) & 1u; }
DEVICE bool stale(uint4 v, u32 parity) { return ((v.x ^ parity) | (v.y ^ parity) | (v.z ^ parity) | (v.w ^ parity)) & 1u; }

// Relaxed accesses at the scope of the GPU: to L2, past L1. Each word stands for itself, so no order among them is needed.
DEVICE void pass_on(float *to, float v, u32 parity) { asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(marked(v, parity)) : "memory"); }
DEVICE void pass_on(float *to, float a, float b, u32 parity) {
    asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(marked(a, parity)), "r"(marked(b, parity)) : "memory");
}
DEVICE void pass_on(float *to, float a, float b, float c, float d, u32 parity) {
    asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(marked(a, parity)), "r"(marked(b, parity)), "r"(marked(c, parity)), "r"(marked(d, parity)) : "memory");
}
DEVICE void ask(const float *from, u32 &v) { asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(from) : "memory"); }
DEVICE void ask(const float *from, uint4 &v) { asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from) : "memory"); }

// v[i] from at(i), all new: all are asked for at once, and those that were not there yet again.
template <class Word, int N, class At> DEVICE void collect(Word (&v)[N], u32 parity, const At &at) {
#pragma unroll
    for (int i = 0; i < N; i++) ask(at(i), v[i]);
    bool missing;
    do {
        missing = false;
#pragma unroll
        for (int i = 0; i < N; i++)
            if (stale(v[i], parity)) ask(at(i), v[i]), missing = true;
    } while (missing);
}
