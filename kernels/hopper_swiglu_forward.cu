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
// Grid: CLUSTER * ceil(H / (ROWS / 2) / SHARE_B) * ceil(B / COLS / SHARE_A) blocks of THREADS threads, clusters of CLUSTER; or fewer, which then
// have several tiles each, the next one's operands on their way while one is finished.
#include "hopper_staging.cuh"

constexpr int UNITS = ROWS / 2;
// Images whose g, u and z, or whose z alone, are on their way at once.
constexpr int IMAGES = images_at_once(3 * Staging<T, UNITS, 1>::BYTES), ALONE = images_at_once(Staging<T, UNITS, 1>::BYTES);

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    hopper_swiglu_forward(const __grid_constant__ TensorMap wf, const __grid_constant__ TensorMap x, const float *scale, T *z, T *gates, int batch, int inputs, int hidden) {
    extern __shared__ __align__(1024) u8 shared[];
    if (threadIdx.x == MULTIPLIERS) tma_prefetch(wf), tma_prefetch(x);
    Ring ring = start_ring(shared_address(shared));
    const Place p = place();
    const u32 tiles_a = ((hidden + UNITS - 1) / UNITS + SHARE_B - 1) / SHARE_B, tiles_b = ((batch + COLS - 1) / COLS + SHARE_A - 1) / SHARE_A;
    const u32 work = tiles_a * tiles_b, cluster = blockIdx.x / CLUSTER, clusters = gridDim.x / CLUSTER;
    const auto place_of = [&](u32 item) {
        const TilePlace at = tile_place(item, tiles_a, tiles_b);
        return TilePlace{(at.a * SHARE_B + (int)p.b) * UNITS, (at.b * SHARE_A + (int)p.a) * COLS};
    };
    int begin, end;
    split_tiles(inputs, p.split, begin, end);

    // [g | u]^T = Wf x^T: (2H, D) @ (D, B) -> (2H, B)
    if (threadIdx.x >= MULTIPLIERS) {
        become_loader();
        const u32 mask_a = sharers_of_a(p), mask_b = sharers_of_b(p);
        const Weights kept;
        for (u32 item = cluster; item < work; item += clusters) {
            if (threadIdx.x == MULTIPLIERS) {
                const TilePlace at = place_of(item);
                const auto weights = [&](u32 a, u32 full, int tile) {
                    constexpr int SLABS = UNITS / 8 / SHARE_A;
#pragma unroll
                    for (int plane = 0; plane < PLANES; plane++) { // 32 elements of K each
                        const u32 to = a + plane * (ROWS * 128) + p.a * (SLABS * 2048);
                        const int k = tile * K_TILE + 32 * plane, slab = at.a / 8 + (int)p.a * SLABS;
                        if (SHARE_A > 1) tma_share(to, wf, full, mask_a, k, 0, 0, slab);
                        else kept.load(slab * 8, k, to, wf, full, k, 0, 0, slab);
                    }
                };
                const auto activations = [&](u32 b, u32 full, int tile) {
                    constexpr int BOX_ROWS = COLS / SHARE_B;
#pragma unroll
                    for (int plane = 0; plane < PLANES; plane++) { // hi, lo
                        const u32 to = b + plane * (COLS * 128) + p.b * (BOX_ROWS * 128);
                        const int image = at.b + (int)p.b * BOX_ROWS + plane * batch;
                        if (SHARE_B > 1) tma_share(to, x, full, mask_b, tile * K_TILE, image);
                        else tma_load(to, x, full, tile * K_TILE, image);
                    }
                };
                int tile = begin;
                if (item == cluster) {
                    // fp32-emulated: the kernel before is the one that splits x, and it waited for whatever wrote the weights.
                    if (SPLIT_FP32) tile = feed_ahead(ring, begin, end, weights, wait_for_last, activations);
                    else wait_for_last();
                }
                for (; tile < end; tile++)
                    feed(ring, [&](u32 a, u32 b, u32 full) { weights(a, full, tile), activations(b, full, tile); });
            }
            __syncwarp();
            finish_beside();
        }
    } else {
        become_multiplier();
        const int warp = threadIdx.x / 32;
        const Staging<T, UNITS, IMAGES> to_g{ring.results()}, to_u{to_g.base + to_g.BYTES}, to_z{to_u.base + to_u.BYTES};
        const Staging<T, UNITS, ALONE> alone{gates ? to_z.base : ring.results()};
        const int mask = (gates ? IMAGES : ALONE) / 8 - 1;
        Sums sums;
        for (u32 item = cluster; item < work; item += clusters) {
            const TilePlace at = place_of(item);
            multiply<false, false>(sums, ring, end - begin, p, One());
            if (item + clusters >= work) let_next_start();
            wait_for_last();
            // From here on the loader fills the ring for the next tile.
            const int first_image = at.b + p.split * SHARE_COLS;
            const auto gate = [&](int m, int j, float4 v) {
                const int unit = (warp / 4 * M_TILES + m) * 32 + (warp & 3) * 8, staged = j & mask;
                if (SPLIT_FP32) {
                    const int image = first_image + 8 * j + (threadIdx.x & 3) * 2;
                    const float s0 = scale[min(image, batch - 1)], s1 = scale[min(image + 1, batch - 1)];
                    v.x *= s0, v.y *= s1, v.z *= s0, v.w *= s1;
                }
                if (gates) to_g.put(unit, staged, v.x, v.y), to_u.put(unit, staged, v.z, v.w);
                alone.put(unit, staged, gate_forward(v.x, v.z), gate_forward(v.y, v.w));
            };
            const auto write = [&](int round) {
                const int image = first_image + round * IMAGES;
                to_g.write(gates, image, batch, at.a, hidden, 2 * hidden);
                to_u.write(gates + hidden, image, batch, at.a, hidden, 2 * hidden);
                to_z.write(z, image, batch, at.a, hidden, hidden);
            };
            if (gates) finish<SHARE_COLS / IMAGES>(sums, ring, p, Nothing(), gate, write);
            else finish<SHARE_COLS / ALONE>(sums, ring, p, Nothing(), gate, [&](int round) { alone.write(z, first_image + round * ALONE, batch, at.a, hidden, hidden); });
        }
    }
    end_ring();
}
