// What the kernels of the head share: sums over a warp, and the sums over H behind the logits of a few rows.
#pragma once
#include "early.cuh"

#ifndef HEAD_ROWS
#define HEAD_ROWS 1
#define HEAD_CHUNK 256
#endif
#ifndef HEAD_THREADS
#define HEAD_THREADS 1024
#endif
constexpr int CLASSES = 10, THREADS = 256;
// Small batches: whatever comes after may start at once, though the forward ahead may still be running then, and ask for its weights while these few blocks work.
constexpr bool AT_ONCE = HEAD_THREADS < 1024;
DEVICE void wait_and_let_start() {
    if (AT_ONCE) let_next_start();
    wait_for_last();
    if (!AT_ONCE) let_next_start();
}

// From L2: what is read before the wait may be in L1 as it was a step ago.
DEVICE float load_cg(const float *p) {
    float v;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory");
    return v;
}
DEVICE float load_cg(const bf16 *p) {
    bf16 v;
    asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(v.bits) : "l"(p) : "memory");
    return to_float(v);
}

// Sums of COUNT values over a warp, each in one fixed order, by halves: a lane hands over half of what it has and adds what it gets to the other half, so
// that COUNT values take about COUNT exchanges, not 5 COUNT. use(i, sum of value i), by one lane for each i < COUNT (maybe several, with the same).
template <int COUNT, int DISTANCE, class Use> DEVICE void warp_sums(float (&v)[COUNT], int base, int end, const Use &use) {
    if constexpr (DISTANCE == 0) {
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            if (base + i < end) use(base + i, v[i]);
    } else {
        constexpr int HALF = (COUNT + 1) / 2;
        const bool upper = (threadIdx.x & DISTANCE) != 0;
        float half[HALF];
#pragma unroll
        for (int i = 0; i < HALF; i++) {
            const float high = i + HALF < COUNT ? v[i + HALF] : COUNT == 1 ? v[0] : 0.f;
            half[i] = (upper ? high : v[i]) + __shfl_xor_sync(0xffffffffu, upper ? v[i] : high, DISTANCE);
        }
        const int middle = COUNT == 1 ? end : min(base + HALF, end);
        warp_sums<HALF, DISTANCE / 2>(half, upper && COUNT > 1 ? middle : base, upper || COUNT == 1 ? end : middle, use);
    }
}

// A thread's four columns of z, of HEAD_ROWS rows, and of w.
struct HeadQuad {
    float z[HEAD_ROWS][4], w[CLASSES][4];
    DEVICE void load_w(const float *w_in, int h, int hidden) {
#pragma unroll
        for (int c = 0; c < CLASSES; c++) {
            const float *p = w_in + (u64)c * hidden + h;
            if (ALIGNED) {
                unpack16(load16_cg(p), w[c], 0.f);
            } else {
#pragma unroll
                for (int e = 0; e < 4; e++) w[c][e] = h + e < hidden ? load_cg(p + e) : 0.f;
            }
        }
    }
    DEVICE void load_z(const T *z_in, int h, int row0, int batch, int hidden) { // all on their way at once
#pragma unroll
        for (int r = 0; r < HEAD_ROWS; r++) load_quad(z_in + (u64)min(row0 + r, batch - 1) * hidden + h, hidden - h, z[r]);
    }
};

// z w^T of rows row0 .. row0 + HEAD_ROWS, one part a warp: scratch[warp][r * CLASSES + c]; the caller adds them up after a barrier. The first weights are asked
// for before the kernel ahead has ended. `quad` is left with the thread's last columns.
DEVICE void head_sums(const T *z, const float *w, int row0, int batch, int hidden, HeadQuad &quad, float (*scratch)[HEAD_ROWS * CLASSES]) {
    constexpr int COUNT = HEAD_ROWS * CLASSES;
    float sum[COUNT] = {};
    int h = threadIdx.x * 4;
    if (h < hidden) quad.load_w(w, h, hidden);
    wait_and_let_start();
    while (h < hidden) {
        quad.load_z(z, h, row0, batch, hidden);
#pragma unroll
        for (int r = 0; r < HEAD_ROWS; r++)
#pragma unroll
            for (int c = 0; c < CLASSES; c++)
#pragma unroll
                for (int e = 0; e < 4; e++) sum[r * CLASSES + c] = fmaf(quad.z[r][e], quad.w[c][e], sum[r * CLASSES + c]);
        h += THREADS * 4;
        if (h < hidden) quad.load_w(w, h, hidden);
    }
    warp_sums<COUNT, 16>(sum, 0, COUNT, [&](int i, float s) { scratch[threadIdx.x >> 5][i] = s; });
    __syncthreads();
}
