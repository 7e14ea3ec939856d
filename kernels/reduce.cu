// Small passes over whole arrays. All arrays start on 16 bytes.
//   sum_squares   partials[block] = sum of x[i]^2 over the block's share        fp32, in an order that only depends on count and the grid; x is fp32, or bf16 in sum_squares_bf16
//   sum_squares_of_difference   how far two arrays are apart: what the tuner compares results by
//   clip_scale    norm = sqrt(sum of partials), scale = min(1, max_norm / (norm + 1e-6))  gradient clipping without a trip to the host
//   to_bf16       out[i] = bf16(x[i]), rounded to nearest
//   count_correct correct += rows whose largest logit is at the label            integers: order does not matter
//
// Reads     its input once        Writes    partials; two partials a block; two floats; 2 bytes an element; one u32 and, if wanted, a guess a row
// Launches  1 each. Bytes: 4 an element (bf16: 2); twice that; nothing; 6 an element; 40 a row.
// Wins      by being deterministic (float atomics are not).  Loses: to an epilogue that has the values in registers.
#include "common.cuh"

constexpr int THREADS = 256;

template <class E> DEVICE void squares(const E *x, float *partials, u64 count) {
    constexpr int N = Vec<E>::N;
    __shared__ float scratch[THREADS / 32];
    float sum[4] = {};
    const u64 vectors = count / N, stride = (u64)gridDim.x * THREADS;
    u64 at = (u64)blockIdx.x * THREADS + threadIdx.x;
    const auto add = [&](uint4 bits) {
        float v[N];
        unpack16(bits, v, E());
#pragma unroll
        for (int i = 0; i < N; i++) sum[i % 4] = fmaf(v[i], v[i], sum[i % 4]);
    };
    for (; at + 3 * stride < vectors; at += 4 * stride) { // four reads under way
        const uint4 a = load16(x + N * at), b = load16(x + N * (at + stride)), c = load16(x + N * (at + 2 * stride)), d = load16(x + N * (at + 3 * stride));
        add(a), add(b), add(c), add(d);
    }
    for (; at < vectors; at += stride) add(load16(x + N * at));
    if (blockIdx.x == 0 && threadIdx.x < count % N) {
        const float last = to_float(x[N * vectors + threadIdx.x]);
        sum[0] = fmaf(last, last, sum[0]);
    }
    const float total = block_sum<THREADS>(sum[0] + sum[1] + (sum[2] + sum[3]), scratch);
    if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

// Any grid; 8 blocks an SM fill memory. Several tensors: give each its own stretch of `partials`.
extern "C" __global__ void __launch_bounds__(THREADS) sum_squares(const float *x, float *partials, u64 count) { squares(x, partials, count); }
extern "C" __global__ void __launch_bounds__(THREADS) sum_squares_bf16(const bf16 *x, float *partials, u64 count) { squares(x, partials, count); }

// Any grid. Two sums a block: of (x[i] - y[i])^2, and of y[i]^2. A NaN in x or y shows.
template <class E> DEVICE void difference(const E *x, const E *y, float *partials, u64 count) {
    __shared__ float scratch[THREADS / 32];
    float off = 0.f, size = 0.f;
    for (u64 at = (u64)blockIdx.x * THREADS + threadIdx.x; at < count; at += (u64)gridDim.x * THREADS) {
        const float a = to_float(x[at]), b = to_float(y[at]);
        off = fmaf(a - b, a - b, off), size = fmaf(b, b, size);
    }
    off = block_sum<THREADS>(off, scratch), size = block_sum<THREADS>(size, scratch);
    if (threadIdx.x == 0) partials[2 * blockIdx.x] = off, partials[2 * blockIdx.x + 1] = size;
}
extern "C" __global__ void __launch_bounds__(THREADS) sum_squares_of_difference(const float *x, const float *y, float *partials, u64 count) { difference(x, y, partials, count); }
extern "C" __global__ void __launch_bounds__(THREADS) sum_squares_of_difference_bf16(const bf16 *x, const bf16 *y, float *partials, u64 count) { difference(x, y, partials, count); }

// One block. norm may be null. max_norm of infinity leaves scale at 1.
extern "C" __global__ void __launch_bounds__(THREADS) clip_scale(const float *partials, int count, float max_norm, float *norm, float *scale) {
    __shared__ float scratch[THREADS / 32];
    float sum = 0.f;
    for (int i = threadIdx.x; i < count; i += THREADS) sum += partials[i];
    const float length = sqrtf(block_sum<THREADS>(sum, scratch));
    if (threadIdx.x == 0) {
        if (norm) *norm = length;
        if (scale) *scale = fminf(max_norm / (length + 1e-6f), 1.f); // as PyTorch's clip_grad_norm_
    }
}

// ceil(count / 2048) blocks: eight elements a thread.
extern "C" __global__ void __launch_bounds__(THREADS) to_bf16(const float *x, bf16 *out, u64 count) {
    const u64 at = ((u64)blockIdx.x * THREADS + threadIdx.x) * 8;
    if (at + 8 <= count) {
        float lo[4], hi[4];
        const uint4 a = load16(x + at), b = load16(x + at + 4);
        unpack16(a, lo, 0.f), unpack16(b, hi, 0.f);
        *(uint4 *)(out + at) = make_uint4(pack_bf16(lo[0], lo[1]), pack_bf16(lo[2], lo[3]), pack_bf16(hi[0], hi[1]), pack_bf16(hi[2], hi[3]));
    } else {
        for (u64 i = at; i < count; i++) out[i] = from_float<bf16>(x[i]);
    }
}

// ceil(rows / 256) blocks. guesses may be null. A row with no number in it (all NaN) guesses 255 and is never right.
extern "C" __global__ void __launch_bounds__(THREADS) count_correct(const float *logits, const u8 *labels, u8 *guesses, u32 *correct, int rows, int classes) {
    const int row = blockIdx.x * THREADS + threadIdx.x;
    int guess = 255;
    if (row < rows) {
        float top = -__uint_as_float(0x7f800000u);
        for (int c = 0; c < classes; c++) {
            const float v = logits[(u64)row * classes + c];
            if (v > top || (guess == 255 && v == top)) top = v, guess = c;
        }
        if (guesses) guesses[row] = (u8)guess;
    }
    const u32 right = __ballot_sync(0xffffffffu, row < rows && guess == labels[min(row, rows - 1)]);
    if ((threadIdx.x & 31) == 0 && right) atomicAdd(correct, (u32)__popc(right));
}

// ceil(count / 1024) blocks. Every byte 0xff is a NaN in fp32 and in bf16: what outputs are poisoned with before a test.
extern "C" __global__ void __launch_bounds__(THREADS) fill_nan(u32 *words, u64 count) {
    for (u64 i = (u64)blockIdx.x * 1024 + threadIdx.x, end = min(count, (u64)(blockIdx.x + 1) * 1024); i < end; i += THREADS) words[i] = 0xffffffffu;
}
