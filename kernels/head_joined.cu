// The head where the batch is large: all that the layers wait for in one launch, and the step on its weights in another that nobody waits for.
//   head_loss_dz   logits = z w^T + bias; losses as head_loss; dlogits, which stay in the block; dz = dlogits w; and each block's part of
//                  dw = dlogits^T z and db, from the rows that it has at hand: parts (blocks, H / 4, 10, 4), then (blocks, 10)
//                  GATES 1: dz goes no further than the registers, where it becomes [dg | du] of the last layer, from the [g | u] that its forward kept: dz is
//                  neither written nor read, and dx is a product that waits for nothing else
//   head_step      adds the parts up in their order, takes the step on w and bias, and adds the losses up
//
// Reads     z once, where head.cu reads it twice; w
// Writes    dz or [dg | du], 40 bytes a column and block of HEAD_ROWS rows of parts, losses
// Launches  2; the second may stand anywhere between the first and the next step
// Wins      at batches of 512 and more up to H = 1024: head.cu's backward has a block for 16 columns, which at H = 512 is a quarter of the chip, in front of the layers' backward
// Loses     at small batches, where parts are more to write and read than z is
//
// head_loss_dz: ceil(B / HEAD_ROWS) blocks of 256 threads; labels, rates and what is told of them as in head.cu. H is a multiple of 4 (ALIGNED).
// head_step: H / 4 + 1 blocks of one warp; the last does the bias and the tally: loss_log[*step], correct_log[*step], *step moves on (null: index 0).
//
// head_step lets the kernel after it start at once, before it has waited itself: what it reads was written two launches ago or more, and the kernel after it
// reads nothing of what it writes before it has waited. So neither waits for the other's work: it waits last, so that "this one has ended" goes on to mean
// that all before have.
#include "head.cuh"
#include "sgd.cuh"
#include "tile.cuh"

#ifndef GATES
#define GATES 0
#endif
static_assert(ALIGNED, "rows of whole 16 bytes");

DEVICE void store_quad(float *p, const float (&v)[4]) { *(uint4 *)p = pack16(v, 0.f); }
DEVICE void store_quad(bf16 *p, const float (&v)[4]) { *(uint2 *)p = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])); }

#if GATES
// The gates of a thread's four units.
struct GateQuad {
    float g[HEAD_ROWS][4], u[HEAD_ROWS][4];
    DEVICE void load(const T *gates, int h, int row0, int batch, int hidden) {
#pragma unroll
        for (int r = 0; r < HEAD_ROWS; r++) {
            const T *at = gates + offset(min(row0 + r, batch - 1), 2 * hidden) + h;
            load_quad(at, 4, g[r]), load_quad(at + hidden, 4, u[r]);
        }
    }
};
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
    head_loss_dz(const T *z, const float *w, const float *bias, const u8 *labels, const u32 *label_step, int first, float *losses, const u32 *step, const float *rates, float *rate,
#if GATES
                 const T *gates, T *dgates,
#else
                 T *dz,
#endif
                 float *parts, int batch, int hidden) {
    constexpr int COUNT = HEAD_ROWS * CLASSES, LANES = 16; // lanes for the ten classes of a row
    static_assert(HEAD_ROWS * LANES <= THREADS && HEAD_ROWS % 2 == 0, "a half warp for each row");
    __shared__ float scratch[THREADS / 32][COUNT];
    __shared__ __align__(16) float dlogits[HEAD_ROWS][12]; // two of padding, so that a row is three vectors
    const int row0 = blockIdx.x * HEAD_ROWS, of_row = threadIdx.x / LANES, c = threadIdx.x % LANES;
    const float start = c < CLASSES ? load_cg(bias + c) : 0.f;
    // Asked for before the kernel ahead has ended, which writes none of it: labels would be two waits later, one after the other.
    const int label = labels[first + (label_step ? (int)load_early(label_step) * batch : 0) + min(row0 + of_row % HEAD_ROWS, batch - 1)];
    HeadQuad quad;
    head_sums(z, w, row0, batch, hidden, quad, scratch);
    // On the way back the last columns come first: they are at hand.
    const bool works = threadIdx.x * 4 < hidden;
    int h = threadIdx.x * 4 + (works ? (hidden - 1 - threadIdx.x * 4) / (THREADS * 4) * (THREADS * 4) : 0);
#if GATES
    GateQuad gate;
    if (works) gate.load(gates, h, row0, batch, hidden);
#endif
    if (blockIdx.x == 0 && threadIdx.x == THREADS - 1 && rates) *rate = rates[*step];
    if (of_row < HEAD_ROWS) {
        const int row = row0 + of_row;
        const u32 half = threadIdx.x & 16;
        float logit = __uint_as_float(0xff800000u); // lanes without a class: minus infinity
        if (c < CLASSES) {
            logit = start;
#pragma unroll
            for (int warp = 0; warp < THREADS / 32; warp++) logit += scratch[warp][of_row * CLASSES + c];
        }
        float top = logit, total;
#pragma unroll
        for (int d = LANES / 2; d > 0; d >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
        const float e = c < CLASSES ? expf(logit - top) : 0.f;
        total = e;
#pragma unroll
        for (int d = LANES / 2; d > 0; d >>= 1) total += __shfl_xor_sync(0xffffffffu, total, d);
        const u32 largest = __ballot_sync(0xffffffffu, logit == top) >> half & 0xffffu; // the first of them is the guess
        const float at_label = __shfl_sync(0xffffffffu, logit, half + label);
        if (c < 12) dlogits[of_row][c] = c < CLASSES && row < batch ? (e / total - (c == label ? 1.f : 0.f)) / batch : 0.f;
        if (c == 0 && row < batch) { // a loss is at least 0, so its sign bit is free to say that the guess was right
            const float loss = fmaxf(logf(total) + top - at_label, 0.f);
            losses[row] = loss != loss || total != total ? __uint_as_float(0x7fffffffu)
                                                         : __uint_as_float(__float_as_uint(loss) | (largest && __ffs(largest) - 1 == label ? 0x80000000u : 0u));
        }
    }
    __syncthreads();
    if (threadIdx.x < CLASSES) {
        float sum = 0.f;
#pragma unroll
        for (int r = 0; r < HEAD_ROWS; r++) sum += dlogits[r][threadIdx.x];
        parts[offset(gridDim.x, hidden) * CLASSES + blockIdx.x * CLASSES + threadIdx.x] = sum;
    }
    if (!works) return;
    for (;;) {
        float dw[CLASSES][4] = {};
#pragma unroll
        for (int r = 0; r < HEAD_ROWS; r++) {
            float d[12], back[4] = {};
#pragma unroll
            for (int i = 0; i < 3; i++) {
                const float4 v = *(const float4 *)&dlogits[r][4 * i];
                d[4 * i] = v.x, d[4 * i + 1] = v.y, d[4 * i + 2] = v.z, d[4 * i + 3] = v.w;
            }
#pragma unroll
            for (int k = 0; k < CLASSES; k++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    back[e] = fmaf(d[k], quad.w[k][e], back[e]);
                    dw[k][e] = fmaf(d[k], quad.z[r][e], dw[k][e]);
                }
#if GATES
            float dg[4], du[4];
#pragma unroll
            for (int e = 0; e < 4; e++) gate_backward(gate.g[r][e], gate.u[r][e], back[e], dg[e], du[e]);
            T *out = dgates + offset(row0 + r, 2 * hidden) + h;
            if (row0 + r < batch) store_quad(out, dg), store_quad(out + hidden, du);
#else
            if (row0 + r < batch) store_quad(dz + offset(row0 + r, hidden) + h, back);
#endif
        }
        float *to = parts + (offset(blockIdx.x, hidden) + h) * CLASSES;
#pragma unroll
        for (int k = 0; k < CLASSES; k++) store_quad(to + 4 * k, dw[k]);
        if (h < THREADS * 4) break;
        h -= THREADS * 4;
        quad.load_w(w, h, hidden), quad.load_z(z, h, row0, batch, hidden);
#if GATES
        gate.load(gates, h, row0, batch, hidden);
#endif
    }
}

// Four sums over `count` parts that lie `stride` floats apart, by a warp: lanes c, c + 10 and c + 20 take every third part each, and lane c gets class c's.
DEVICE void sum_parts(const float *parts, int count, u64 stride, int width, float (&sum)[4]) {
    const int lane = threadIdx.x & 31, c = lane % CLASSES, group = lane / CLASSES;
#pragma unroll
    for (int e = 0; e < 4; e++) sum[e] = 0.f;
    if (group < 3) {
#pragma unroll 8
        for (int part = group; part < count; part += 3) {
            const float *from = parts + part * stride + c * width;
            float v[4] = {};
            if (width == 4) unpack16(load16_cg(from), v, 0.f);
            else v[0] = load_cg(from);
#pragma unroll
            for (int e = 0; e < 4; e++) sum[e] += v[e];
        }
    }
#pragma unroll
    for (int e = 0; e < 4; e++) {
        const float second = __shfl_down_sync(0xffffffffu, sum[e], CLASSES), third = __shfl_down_sync(0xffffffffu, sum[e], 2 * CLASSES);
        sum[e] += second + third;
    }
}

extern "C" __global__ void __launch_bounds__(32)
    head_step(const float *parts, int count, float *w, float *w_velocity, float *bias, float *bias_velocity, const float *losses, float *loss_log, u32 *correct_log, u32 *step, const float *lr,
              const float *scale, float momentum, float weight_decay, int nesterov, int batch, int hidden) {
    let_next_start();
    const int c = threadIdx.x;
    float sum[4];
    if (blockIdx.x < gridDim.x - 1) {
        const int h = blockIdx.x * 4;
        const u64 at = offset(c, hidden) + h;
        float value[4], velocity[4];
        if (c < CLASSES) unpack16(load16_cg(w + at), value, 0.f), unpack16(load16_cg(w_velocity + at), velocity, 0.f);
        sum_parts(parts + (u64)h * CLASSES, count, (u64)hidden * CLASSES, 4, sum);
        if (c < CLASSES) {
            const Sgd sgd = sgd_settings(lr, scale, momentum, weight_decay, nesterov);
#pragma unroll
            for (int e = 0; e < 4; e++) sgd_step(sgd, sum[e], value[e], velocity[e]);
            store_quad(w + at, value), store_quad(w_velocity + at, velocity);
        }
    } else {
        sum_parts(parts + offset(count, hidden) * CLASSES, count, CLASSES, 1, sum);
        if (c < CLASSES) {
            float value = load_cg(bias + c), velocity = load_cg(bias_velocity + c);
            sgd_step(sgd_settings(lr, scale, momentum, 0.f, nesterov), sum[0], value, velocity); // weights decay, biases do not
            bias[c] = value, bias_velocity[c] = velocity;
        }
        float loss = 0.f, right = 0.f;
#pragma unroll 8
        for (int b = threadIdx.x; b < batch; b += 32) {
            const u32 v = __float_as_uint(load_cg(losses + b));
            loss += __uint_as_float(v & 0x7fffffffu);
            right += (float)(v >> 31);
        }
        loss = warp_sum(loss), right = warp_sum(right);
        if (threadIdx.x == 0) {
            const u32 now = step ? *step : 0;
            loss_log[now] = loss / batch;
            correct_log[now] = (u32)right;
            if (step) *step = now + 1;
        }
    }
    wait_for_last();
}
