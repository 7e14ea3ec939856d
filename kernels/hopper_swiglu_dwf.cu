// dWf = [dg | du]^T x on Hopper        [dg | du] (B, 2H), x (B, D), dWf (2H, D), of T: summed in fp32, rounded once; the step is in fp32
//
// Reads     [dg | du] and x by TMA, along the batch: both tiles lie with K in rows. bf16 wgmma reads such tiles as they are; TF32 and fp32-emulated take A
//           through registers, TF32's B is x transposed in memory (hopper_transpose.cu), fp32-emulated's B the split x (hopper_split.cu).
// Writes    UPDATE 0: dWf. UPDATE 1: w, velocity and (bf16) the copy of w that products read; dWf is never written.
// Launches  1
// Wins      at large B by wgmma; at small B it is a stream over the weights like swiglu_fused_dwf.cu
//
// With UPDATE the weights and their velocity are asked into L2 before the product begins, so that they arrive while it runs.
//
// Maps: `dgrad` [dg | du] (B, 2H), box (128 bytes, K_TILE); `x` (B, D), box (64, 64), or TF32: x^T (D, B), box (32, COLS), or fp32-emulated: its planes
// (2B, D) fp16, box (64, 64), and `scale` (B).
// Grid: ceil(2 H / ROWS) * ceil(D / COLS) blocks; SPLITS, SHARE_A and SHARE_B are 1.
#include "hopper_product.cuh"
#include "sgd.cuh"

#ifndef UPDATE
#define UPDATE 0
#endif
static_assert(CLUSTER == 1, "a block owns its tile");

// Two neighbours of a row to shared memory.
DEVICE void put_pair(u32 to, float first, float second, float) { asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(first), "f"(second) : "memory"); }
DEVICE void put_pair(u32 to, float first, float second, bf16) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(pack_bf16(first, second)) : "memory"); }

#if UPDATE
extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    hopper_swiglu_dwf_sgd(const __grid_constant__ TensorMap dgrad, const __grid_constant__ TensorMap x, const float *scale, float *w, float *velocity, bf16 *w_copy, const float *lr,
                          const float *gradient_scale, float momentum, float weight_decay, int nesterov, int batch, int inputs, int hidden) {
#else
extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    hopper_swiglu_dwf(const __grid_constant__ TensorMap dgrad, const __grid_constant__ TensorMap x, const float *scale, T *dwf, int batch, int inputs, int hidden) {
#endif
    extern __shared__ __align__(1024) u8 shared[];
    if (threadIdx.x == MULTIPLIERS) tma_prefetch(dgrad), tma_prefetch(x);
    Ring ring = start_ring(shared_address(shared));
    const Place p = place();
    const TilePlace at = tile_place(blockIdx.x, (2 * hidden + ROWS - 1) / ROWS, (inputs + COLS - 1) / COLS);
    const int row0 = at.a * ROWS, col0 = at.b * COLS, tiles = (batch + K_TILE - 1) / K_TILE;
    wait_for_last();
#if UPDATE
    for (int line = threadIdx.x; line < ROWS * (COLS / 32); line += THREADS) { // 128 bytes each
        const int row = row0 + line / (COLS / 32), col = col0 + line % (COLS / 32) * 32;
        if (row >= 2 * hidden || col >= inputs) continue;
        asm volatile("prefetch.global.L2 [%0];" ::"l"(w + offset(row, inputs) + col));
        asm volatile("prefetch.global.L2 [%0];" ::"l"(velocity + offset(row, inputs) + col));
    }
#endif
    if (threadIdx.x >= MULTIPLIERS) {
        become_loader();
        if (threadIdx.x == MULTIPLIERS) {
            for (int tile = 0; tile < tiles; tile++)
                feed(ring, [&](u32 a, u32 b, u32 full) {
                    const int k = tile * K_TILE;
                    constexpr int WIDE = PRECISION == 2 ? 64 : 32;
#pragma unroll
                    for (int block = 0; block < ROWS / WIDE; block++) tma_load(a + block * (K_TILE * 128), dgrad, full, row0 + block * WIDE, k);
                    if (PRECISION == 1) {
                        tma_load(b, x, full, k, col0);
                    } else {
#pragma unroll
                        for (int plane = 0; plane < PLANES; plane++)
#pragma unroll
                            for (int block = 0; block < COLS / 64; block++) tma_load(b + plane * (COLS * 128) + block * (64 * 128), x, full, col0 + block * 64, k + plane * batch);
                    }
                });
        }
    } else {
        become_multiplier();
        // (2H, B) @ (B, D) -> (2H, D)
        Sums sums;
        multiply<true, PRECISION != 1>(sums, ring, tiles, p, [&](int k) { return k < batch ? scale[k] : 0.f; });
        let_next_start();
        // Sums to shared memory, where the ring was, a gradient as it is kept; then whole rows, 16 bytes a thread.
#if UPDATE
        typedef float Out;
#else
        typedef T Out;
#endif
        constexpr int PITCH = COLS * (int)sizeof(Out) + 8 * (int)sizeof(Out); // so that rows start on other banks
        static_assert(ROWS * PITCH <= RING_BYTES, "the tile fits where the ring was");
        const int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
        const auto put = [&](int m, int j, float4 v) {
            const u32 to = ring.stages + ((warp / 4 * M_TILES + m) * 64 + (warp & 3) * 16 + lane / 4) * PITCH + (8 * j + lane % 4 * 2) * (int)sizeof(Out);
            put_pair(to, v.x, v.y, Out()), put_pair(to + 8 * PITCH, v.z, v.w, Out());
        };
        finish(sums, ring, p, Nothing(), put);
        barrier_among(1, MULTIPLIERS);
#if UPDATE
        const Sgd sgd = sgd_settings(lr, gradient_scale, momentum, weight_decay, nesterov);
#endif
        constexpr int N = Vec<Out>::N, CHUNKS = COLS / N, STEP = MULTIPLIERS / CHUNKS, BATCH = !UPDATE && N == 4 ? 8 : 4; // BATCH rows are under way together
        static_assert(MULTIPLIERS % CHUNKS == 0 && ROWS % (STEP * BATCH) == 0, "a thread stays in its columns and takes whole batches");
        const int chunk = threadIdx.x % CHUNKS * N, col = col0 + chunk;
        if (col >= inputs) return; // rows are whole groups of 16 bytes
        for (int first = threadIdx.x / CHUNKS; first < ROWS; first += STEP * BATCH) {
            uint4 sum[BATCH];
#if UPDATE
            float value[BATCH][4], v[BATCH][4];
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                const int row = row0 + first + b * STEP;
                if (row >= 2 * hidden) continue;
                const u64 at = offset(row, inputs) + col;
                unpack16(load16(w + at), value[b], 0.f), unpack16(load16(velocity + at), v[b], 0.f);
            }
#endif
#pragma unroll
            for (int b = 0; b < BATCH; b++)
                asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(sum[b].x), "=r"(sum[b].y), "=r"(sum[b].z), "=r"(sum[b].w)
                             : "r"(ring.stages + (first + b * STEP) * PITCH + chunk * (int)sizeof(Out)) : "memory");
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                const int row = row0 + first + b * STEP;
                if (row >= 2 * hidden) continue;
                const u64 at = offset(row, inputs) + col;
#if UPDATE
                float grad[4];
                unpack16(sum[b], grad, 0.f);
#pragma unroll
                for (int e = 0; e < 4; e++) sgd_step(sgd, grad[e], value[b][e], v[b][e]);
                *(uint4 *)(w + at) = pack16(value[b], 0.f);
                *(uint4 *)(velocity + at) = pack16(v[b], 0.f);
                if (w_copy) *(uint2 *)(w_copy + at) = make_uint2(pack_bf16(value[b][0], value[b][1]), pack_bf16(value[b][2], value[b][3]));
#else
                *(uint4 *)(dwf + at) = sum[b];
#endif
            }
        }
    }
}
