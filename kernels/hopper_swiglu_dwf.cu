// dWf = [dg | du]^T x on Hopper        [dg | du] (B, 2H), x (B, D), dWf (2H, D), always fp32
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
#include "hopper_product.cuh"

static_assert(CLUSTER == 1, "a block owns its tile");

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    hopper_swiglu_dwf(const __grid_constant__ TensorMap dgrad, const __grid_constant__ TensorMap x, const float *scale, float *dwf, int batch, int inputs, int hidden) {
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
        // Sums to shared memory, where the ring was; then whole rows, 16 bytes a thread.
        constexpr int PITCH = COLS * 4 + 32; // so that rows start on other banks
        static_assert(ROWS * PITCH <= RING_BYTES, "the tile fits where the ring was");
        const int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
        const auto put = [&](int m, int j, float4 v) {
            const u32 to = ring.stages + ((warp / 4 * M_TILES + m) * 64 + (warp & 3) * 16 + lane / 4) * PITCH + (8 * j + lane % 4 * 2) * 4;
            asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(v.x), "f"(v.y) : "memory");
            asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to + 8 * PITCH), "f"(v.z), "f"(v.w) : "memory");
        };
        finish(sums, ring, p, Nothing(), put);
        barrier_among(1, MULTIPLIERS);
        constexpr int QUADS = COLS / 4, STEP = MULTIPLIERS / QUADS, BATCH = 8; // BATCH rows are under way together
        static_assert(MULTIPLIERS % QUADS == 0 && ROWS % (STEP * BATCH) == 0, "a thread stays in one column and takes whole batches");
        const int quad = threadIdx.x % QUADS * 4, col = col0 + quad;
        if (col >= inputs) return; // rows are whole groups of 4
        for (int first = threadIdx.x / QUADS; first < ROWS; first += STEP * BATCH) {
            float sum[BATCH][4];
#pragma unroll
            for (int b = 0; b < BATCH; b++)
                asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(sum[b][0]), "=f"(sum[b][1]), "=f"(sum[b][2]), "=f"(sum[b][3])
                             : "r"(ring.stages + (first + b * STEP) * PITCH + quad * 4) : "memory");
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                const int row = row0 + first + b * STEP;
                if (row >= 2 * hidden) continue;
                const u64 at = offset(row, inputs) + col;
                *(uint4 *)(dwf + at) = pack16(sum[b], 0.f);
            }
        }
    }
}
