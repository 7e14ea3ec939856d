// dWf = [dg | du]^T x        [dg | du] (B, 2H), x (B, D), dWf (2H, D), of T: summed in fp32, rounded once. The step is in fp32, as its weights are.
//
// Reads     [dg | du] and x
// Writes    UPDATE 0: dWf. Bytes: 8 H D (bf16: 4 H D), and the inputs.
//           UPDATE 1: w, velocity and (bf16) the copy of w that products read; dWf is never written. Bytes: 32 H D (bf16: 36 H D) against
//           48 H D (44 H D) for a gradient written, read back and applied by an optimiser of its own. (H D counts one of gate and up.)
// Launches  1
// Wins      at small B, where the product is a stream over the weights: the update rides on it.
// Loses     at large B, where the library's product is faster than mma.sync by more than the update costs; and wherever somebody wants to
//           see the gradient first (clipping by norm, accumulation over batches): then use UPDATE 0 and kernels/sgd.cu.
//
// The idea: both operands are read along the batch, which is K here, so both tiles are MN-major: ldmatrix.trans for bf16, words for TF32.
// A block owns a tile of dWf whole, so that it may turn the sum into an update: there is no split of K. The tile then passes through shared
// memory (the stages are free by then), so that weights are read and written 16 bytes a thread and whole rows a warp; and the weights are
// asked into L2 before the product begins, so that they arrive while it runs.
//
// Grid: ceil(2 H / TILE_M) * ceil(D / TILE_N) blocks of WARP_ROWS * WARP_COLS * WARP_SLICES * 32 threads, in one dimension.
#include "product.cuh"
#include "sgd.cuh"

#ifndef TILE_M
#define TILE_M 128  // rows of Wf
#define TILE_N 128  // columns of Wf
#define WARP_ROWS 2
#define WARP_COLS 2
#define TILE_STAGES 3
#define MIN_BLOCKS 1
#endif
#ifndef UPDATE
#define UPDATE 0
#endif

using Dwf = Engine<T, TILE_M, TILE_N, WARP_ROWS, WARP_COLS, false, false>;

extern "C" __global__ void __launch_bounds__(Dwf::THREADS, MIN_BLOCKS)
#if UPDATE
    swiglu_fused_dwf_sgd(const T *dgates, const T *x, float *w, float *velocity, bf16 *w_copy, const float *lr, const float *scale, float momentum, float weight_decay, int nesterov,
                         int batch, int inputs, int hidden) {
#else
    swiglu_fused_dwf(const T *dgates, const T *x, T *dwf, int batch, int inputs, int hidden) {
#endif
    extern __shared__ __align__(1024) u8 stages[];
    const int rows = 2 * hidden, tiles_m = (rows + TILE_M - 1) / TILE_M;
    const int row0 = blockIdx.x % tiles_m * TILE_M, col0 = blockIdx.x / tiles_m * TILE_N;

#if UPDATE
    for (int line = threadIdx.x; line < TILE_M * (TILE_N / 32); line += Dwf::THREADS) { // 128 bytes each
        const int row = row0 + line / (TILE_N / 32), col = col0 + line % (TILE_N / 32) * 32;
        if (row >= rows || col >= inputs) continue;
        asm volatile("prefetch.global.L2 [%0];" ::"l"(w + offset(row, inputs) + col));
        asm volatile("prefetch.global.L2 [%0];" ::"l"(velocity + offset(row, inputs) + col));
    }
#endif

    // (2H, B) @ (B, D) -> (2H, D)
    Accumulators<Dwf> acc;
    multiply_tile<T, Dwf, TILE_STAGES>(acc, shared_address(stages), MnMajor<T>{dgates, rows, row0, rows}, MnMajor<T>{x, inputs, col0, inputs}, 0, batch);

    // Accumulators to shared memory, rows 4 floats longer than the tile so that they start on different banks.
    constexpr int PITCH = TILE_N + 4;
    static_assert(TILE_M * PITCH * 4 <= TILE_STAGES * (Dwf::A::BYTES + Dwf::B::BYTES), "the tile fits where the stages were");
    float *sums = (float *)stages;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < Dwf::OUT_ROWS; i++)
#pragma unroll
        for (int j = 0; j < Dwf::PAIRS; j++) *(float2 *)(sums + Dwf::row(i) * PITCH + Dwf::col(j)) = make_float2(acc.v[i][j][0], acc.v[i][j][1]);
    __syncthreads();

#if UPDATE
    constexpr int N = 4;
    const Sgd sgd = sgd_settings(lr, scale, momentum, weight_decay, nesterov);
#else
    constexpr int N = Vec<T>::N; // elements of 16 bytes
#endif
    constexpr int CHUNKS = TILE_N / N, PASSES = TILE_M * CHUNKS / Dwf::THREADS, STEP = Dwf::THREADS / CHUNKS;
    constexpr int BATCH = 4; // reads of w and velocity that are under way together
    static_assert(Dwf::THREADS % CHUNKS == 0 && PASSES % BATCH == 0, "a thread stays in its columns and takes whole batches");
    const int chunk = threadIdx.x % CHUNKS * N, col = col0 + chunk;
    if (col >= inputs) return;
    for (int pass = 0; pass < PASSES; pass += BATCH) {
        const int first = threadIdx.x / CHUNKS + pass * STEP;
#if UPDATE
        float a[BATCH][4], v[BATCH][4];
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            const int row = row0 + first + b * STEP;
            const u64 at = offset(row, inputs) + col;
            if (row >= rows) continue;
            if (ALIGNED) {
                unpack16(load16(w + at), a[b], 0.f), unpack16(load16(velocity + at), v[b], 0.f);
            } else {
#pragma unroll
                for (int e = 0; e < 4; e++)
                    if (col + e < inputs) a[b][e] = w[at + e], v[b][e] = velocity[at + e];
            }
        }
#endif
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            const int row = row0 + first + b * STEP;
            const u64 at = offset(row, inputs) + col;
            if (row >= rows) continue;
            float out[N];
#pragma unroll
            for (int e = 0; e < N; e += 4) {
                float quad[4];
                unpack16(load16(sums + (first + b * STEP) * PITCH + chunk + e), quad, 0.f);
                out[e] = quad[0], out[e + 1] = quad[1], out[e + 2] = quad[2], out[e + 3] = quad[3];
            }
#if UPDATE
#pragma unroll
            for (int e = 0; e < 4; e++) sgd_step(sgd, out[e], a[b][e], v[b][e]);
            if (ALIGNED) {
                *(uint4 *)(w + at) = pack16(a[b], 0.f);
                *(uint4 *)(velocity + at) = pack16(v[b], 0.f);
                if (w_copy) *(uint2 *)(w_copy + at) = make_uint2(pack_bf16(a[b][0], a[b][1]), pack_bf16(a[b][2], a[b][3]));
            } else {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    if (col + e >= inputs) continue;
                    w[at + e] = a[b][e], velocity[at + e] = v[b][e];
                    if (w_copy) w_copy[at + e] = from_float<bf16>(a[b][e]);
                }
            }
#else
            if (ALIGNED) {
                *(uint4 *)(dwf + at) = pack16(out, T());
            } else {
#pragma unroll
                for (int e = 0; e < N; e++)
                    if (col + e < inputs) dwf[at + e] = from_float<T>(out[e]);
            }
#endif
        }
    }
}
