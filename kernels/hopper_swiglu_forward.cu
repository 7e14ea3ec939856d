// z = silu(x Wg^T) * (x Wu^T) on Hopper        x (B, D), Wf = [Wg; Wu] (2H, D), z (B, H)
//
// Reads     x and Wf by TMA, through L2 once for each tile that needs them; from memory about once
// Writes    z; and, when `gates` is given, [g | u] (B, 2H)
// Launches  1
// Wins      over mma.sync everywhere on this chip; over a library product and a gate kernel by the launch and 6 B H elements of traffic
// Loses     nowhere that was measured against swiglu_fused_forward.cu; it asks for H % 8 == 0 and rows of whole 16 bytes
//
// The idea: Wf, unchanged in memory, is seen by TMA as (H / 8, 2, 8, D): one copy brings 8 gate rows, the 8 up rows that belong to them, the next 8 gate
// rows, ... So in each 16 rows of a warp's wgmma the first 8 are gates and the last 8 their ups, gate and up of one unit and one image are sums of the
// same thread, and the gate needs no exchange.
//
// Maps: `wf` 4-D as above, box (128 bytes, 8, 2, ROWS / 16 / SHARE_A); `x` (B, D), box (128 bytes, COLS / SHARE_B); fp32-emulated: `x` is the split x,
// (2B, D) fp16 with hi in the first B rows and lo in the rest, `scale` (B) what to multiply row b of the product by.
// Grid: CLUSTER * ceil(H / (ROWS / 2) / SHARE_B) * ceil(B / COLS / SHARE_A) blocks of THREADS threads, clusters of CLUSTER.
#include "hopper_staging.cuh"

constexpr int UNITS = ROWS / 2;

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    hopper_swiglu_forward(const __grid_constant__ TensorMap wf, const __grid_constant__ TensorMap x, const float *scale, T *z, T *gates, int batch, int inputs, int hidden) {
    extern __shared__ __align__(1024) u8 shared[];
    if (threadIdx.x == MULTIPLIERS) tma_prefetch(wf), tma_prefetch(x);
    Ring ring = start_ring(shared_address(shared));
    const Place p = place();
    const u32 tiles_a = ((hidden + UNITS - 1) / UNITS + SHARE_B - 1) / SHARE_B, tiles_b = ((batch + COLS - 1) / COLS + SHARE_A - 1) / SHARE_A;
    const TilePlace at = tile_place(blockIdx.x / CLUSTER, tiles_a, tiles_b);
    const int unit0 = (at.a * SHARE_B + p.b) * UNITS, row0 = (at.b * SHARE_A + p.a) * COLS;
    int begin, end;
    split_tiles(inputs, p.split, begin, end);

    // [g | u]^T = Wf x^T: (2H, D) @ (D, B) -> (2H, B)
    if (threadIdx.x >= MULTIPLIERS) {
        become_loader();
        if (threadIdx.x == MULTIPLIERS) {
            const u32 mask_a = sharers_of_a(p), mask_b = sharers_of_b(p);
            wait_for_last();
            for (int tile = begin; tile < end; tile++)
                feed(ring, [&](u32 a, u32 b, u32 full) {
                    constexpr int SLABS = UNITS / 8 / SHARE_A, BOX_ROWS = COLS / SHARE_B;
#pragma unroll
                    for (int plane = 0; plane < PLANES; plane++) { // A: 32 elements of K a plane; B: hi, lo
                        const u32 to_a = a + plane * (ROWS * 128) + p.a * (SLABS * 2048), to_b = b + plane * (COLS * 128) + p.b * (BOX_ROWS * 128);
                        const int k = tile * K_TILE, slab = unit0 / 8 + (int)p.a * SLABS, image = row0 + (int)p.b * BOX_ROWS + plane * batch;
                        if (SHARE_A > 1) tma_share(to_a, wf, full, mask_a, k + 32 * plane, 0, 0, slab);
                        else tma_load(to_a, wf, full, k + 32 * plane, 0, 0, slab);
                        if (SHARE_B > 1) tma_share(to_b, x, full, mask_b, k, image);
                        else tma_load(to_b, x, full, k, image);
                    }
                });
        }
        __syncwarp();
        finish_beside();
    } else {
        become_multiplier();
        Sums sums;
        multiply<false, false>(sums, ring, end - begin, p, One());
        let_next_start();
        wait_for_last();

        // Three tiles of the output pass through shared memory; in fp32 they do not fit, and z takes g's place once g is written.
        constexpr bool IN_TURN = sizeof(T) == 4;
        const Staging<T, UNITS> to_g{ring.stages}, to_u{to_g.base + to_g.BYTES}, to_z{IN_TURN ? to_g.base : to_u.base + to_u.BYTES};
        static_assert((IN_TURN ? 2 : 3) * Staging<T, UNITS>::BYTES <= RING_BYTES, "the tiles fit");
        const int first_image = row0 + p.split * SHARE_COLS, warp = threadIdx.x / 32;
        const auto unit_of = [&](int m) { return (warp / 4 * M_TILES + m) * 32 + (warp & 3) * 8; };
        finish(sums, ring, p, Nothing(), [&](int m, int j, float4 v) {
            const int unit = unit_of(m);
            if (SPLIT_FP32) {
                const int image = first_image + 8 * j + (threadIdx.x & 3) * 2;
                const float s0 = scale[min(image, batch - 1)], s1 = scale[min(image + 1, batch - 1)];
                v.x *= s0, v.y *= s1, v.z *= s0, v.w *= s1;
            }
            if (gates) to_g.put(unit, j, v.x, v.y), to_u.put(unit, j, v.z, v.w);
            if (!IN_TURN || !gates) to_z.put(unit, j, gate_forward(v.x, v.z), gate_forward(v.y, v.w));
        });
        barrier_among(1, MULTIPLIERS);
        if (gates) {
            to_g.write(gates, first_image, batch, unit0, hidden, 2 * hidden);
            to_u.write(gates + hidden, first_image, batch, unit0, hidden, 2 * hidden);
            if (IN_TURN) {
                barrier_among(1, MULTIPLIERS);
                for (int m = 0; m < M_TILES; m++)
                    for (int j = 0; j < SHARE_COLS / 8; j++) {
                        float g[2], u[2];
                        to_g.get(unit_of(m), j, g[0], g[1]), to_u.get(unit_of(m), j, u[0], u[1]);
                        to_z.put(unit_of(m), j, gate_forward(g[0], u[0]), gate_forward(g[1], u[1]));
                    }
                barrier_among(1, MULTIPLIERS);
            }
        }
        to_z.write(z, first_image, batch, unit0, hidden, hidden);
    }
    if (CLUSTER > 1) { // nobody leaves while others may still signal its barriers
        cluster_arrive();
        cluster_wait();
    }
}
