// dWf = [dg | du]^T x on Hopper        [dg | du] (B, 2H), x (B, D), dWf (2H, D), of T: summed in fp32, rounded once
//
// Reads     [dg | du] and x by TMA, along the batch: both tiles lie with K in rows. bf16 wgmma reads such tiles as they are; TF32 and fp32-emulated take A
//           through registers, TF32's B is x transposed in memory (hopper_transpose.cu), fp32-emulated's B the split x (hopper_split.cu).
// Writes    dWf
// Launches  1
// Wins      at large B by wgmma; at small B it is a stream of writes
// Loses     to hopper_weight_step.cu, which writes no gradient, where a step may be taken at once
//
// Maps: `dgrad` [dg | du] (B, 2H), box (128 bytes, K_TILE); `x` (B, D), box (64, 64), or TF32: x^T (D, B), box (32, COLS), or fp32-emulated: its planes
// (2B, D) fp16, box (64, 64), and `scale` (B).
// Grid: ceil(2 H / ROWS) * ceil(D / COLS) blocks; SPLITS, SHARE_A and SHARE_B are 1.
#include "hopper_over_batch.cuh"

static_assert(CLUSTER == 1, "a block owns its tile");

// Two neighbours of a row to shared memory.
DEVICE void put_pair(u32 to, float first, float second, float) { asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(first), "f"(second) : "memory"); }
DEVICE void put_pair(u32 to, float first, float second, bf16) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(pack_bf16(first, second)) : "memory"); }

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    hopper_swiglu_dwf(const __grid_constant__ TensorMap dgrad, const __grid_constant__ TensorMap x, const float *scale, T *dwf, int batch, int inputs, int hidden) {
    extern __shared__ __align__(1024) u8 shared[];
    if (threadIdx.x == MULTIPLIERS) tma_prefetch(dgrad), tma_prefetch(x);
    Ring ring = start_ring(shared_address(shared));
    const Place p = place();
    const TilePlace at = tile_place(blockIdx.x, (2 * hidden + ROWS - 1) / ROWS, (inputs + COLS - 1) / COLS);
    const int row0 = at.a * ROWS, col0 = at.b * COLS, tiles = (batch + K_TILE - 1) / K_TILE;
    wait_for_last();
    if (threadIdx.x >= MULTIPLIERS) {
        become_loader();
        if (threadIdx.x == MULTIPLIERS) {
            for (int tile = 0; tile < tiles; tile++)
                feed(ring, [&](u32 a, u32 b, u32 full) { load_over_batch(a, b, full, dgrad, x, tile * K_TILE, row0, col0, 0, batch); });
        }
    } else {
        become_multiplier();
        // (2H, B) @ (B, D) -> (2H, D)
        Sums sums;
        multiply<true, PRECISION != 1>(sums, ring, tiles, p, [&](int k) { return k < batch ? scale[k] : 0.f; });
        let_next_start();
        // Sums to shared memory, where the ring was, a gradient as it is kept; then whole rows, 16 bytes a thread.
        constexpr int PITCH = COLS * (int)sizeof(T) + 8 * (int)sizeof(T); // so that rows start on other banks
        static_assert(ROWS * PITCH <= RING_BYTES, "the tile fits where the ring was");
        const int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
        const auto put = [&](int m, int j, float4 v) {
            const u32 to = ring.stages + ((warp / 4 * M_TILES + m) * 64 + (warp & 3) * 16 + lane / 4) * PITCH + (8 * j + lane % 4 * 2) * (int)sizeof(T);
            put_pair(to, v.x, v.y, T()), put_pair(to + 8 * PITCH, v.z, v.w, T());
        };
        finish(sums, ring, p, Nothing(), put);
        barrier_among(1, MULTIPLIERS);
        constexpr int N = Vec<T>::N, CHUNKS = COLS / N, STEP = MULTIPLIERS / CHUNKS, BATCH = N == 4 ? 8 : 4; // BATCH rows are under way together
        static_assert(MULTIPLIERS % CHUNKS == 0 && ROWS % (STEP * BATCH) == 0, "a thread stays in its columns and takes whole batches");
        const int chunk = threadIdx.x % CHUNKS * N, col = col0 + chunk;
        if (col >= inputs) return; // rows are whole groups of 16 bytes
        for (int first = threadIdx.x / CHUNKS; first < ROWS; first += STEP * BATCH) {
            uint4 sum[BATCH];
#pragma unroll
            for (int b = 0; b < BATCH; b++)
                asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(sum[b].x), "=r"(sum[b].y), "=r"(sum[b].z), "=r"(sum[b].w)
                             : "r"(ring.stages + (first + b * STEP) * PITCH + chunk * (int)sizeof(T)) : "memory");
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                const int row = row0 + first + b * STEP;
                if (row >= 2 * hidden) continue;
                const u64 at = offset(row, inputs) + col;
                *(uint4 *)(dwf + at) = sum[b];
            }
        }
    }
}
