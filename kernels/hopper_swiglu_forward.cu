// z = silu(x Wg^T) * (x Wu^T) on Hopper        x (B, D), Wf = [Wg; Wu] (2H, D), z (B, H)
//
// Reads     x and Wf by TMA, through L2 once for each tile that needs them; from memory about once
// Writes    z; and, where `gates` is not 0, [g | u] (B, 2H)
// Launches  1
// Wins      over mma.sync everywhere on this chip; over a library product and a gate kernel by the launch and 6 B H elements of traffic
// Loses     nowhere that was measured against swiglu_fused_forward.cu; it asks for H % 8 == 0 and rows of whole 16 bytes
//
// The idea: Wf, unchanged in memory, is seen by TMA as (H / 8, 2, 8, D): one copy brings 8 gate rows, the 8 up rows that belong to them, the next 8 gate
// rows, ... So in each 16 rows of a warp's wgmma the first 8 are gates and the last 8 their ups, gate and up of one unit and one image are sums of the
// same thread, and the gate needs no exchange.
//
// Maps: `wf` 4-D as above, box (128 bytes, 8, 2, ROWS / 16 / SHARE_A); `x` (B, D), box (128 bytes, COLS / SHARE_B); fp32-emulated: `x` is the split x,
// (2B, D) fp16 with hi in the first B rows and lo in the rest, `scale` (B) what to multiply row b of the product by; `to_z` z, box (WIDE, IMAGES), and
// `to_gates` [g | u] as (2, B, H), box (WIDE, IMAGES, 2), which is looked at where `gates` is not 0: rows of 64 or 128 bytes, swizzled over as many.
// Each warpgroup finishes its 32 units by itself: gates, a box in shared memory, the copy engine. Nobody waits for the other one.
//
// Grid: CLUSTER * ceil(H / (ROWS / 2) / SHARE_B) * ceil(B / COLS / SHARE_A) blocks of THREADS threads, clusters of CLUSTER; or fewer, which then
// have several tiles each, the next one's operands on their way while one is finished.
#include "hopper_staging.cuh"

constexpr int UNITS = ROWS / 2;
constexpr int WIDE = 32; // units of a warpgroup's tile
// What goes to memory at once: so many images; z alone, or z, g and u.
template <bool WITH_GATES> struct Sent {
    static constexpr bool GATES = WITH_GATES;
    static constexpr int ROW = (GATES ? 3 : 1) * WIDE * (int)sizeof(T), IMAGES = images_sent(ROW), BYTES = IMAGES * ROW;
};

// z of two images: v holds their g, then their u. In bf16 one reciprocal serves both, for the special functions are what an epilogue takes longest for: 1 / a and
// 1 / b are b and a times 1 / (a b), which is finite where a sigmoid is taken for at least 2^-57.
DEVICE void gate_pair(float4 v, float &first, float &second) {
    if (PRECISION == 2) {
        const float a = 1.f + exponential(fminf(-v.x, 40.f)), b = 1.f + exponential(fminf(-v.y, 40.f));
        float r;
        asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a * b));
        first = v.x * (r * b) * v.z, second = v.y * (r * a) * v.w;
    } else {
        first = gate_forward(v.x, v.z), second = gate_forward(v.y, v.w);
    }
}

// A tile's sums through the gate and on their way.
template <class Sent> DEVICE void send_tile(Outbox<Sent::BYTES> &outbox, const Totals &total, const TensorMap &to_z, const TensorMap &to_gates, const float (&scale)[SHARE_COLS / 4], int first_unit, int first_image, int batch) {
    constexpr int IMAGES = Sent::IMAGES, EIGHTS = IMAGES / 8;
    using B = Box<T, WIDE, IMAGES>;
    const int warp = threadIdx.x / 32, at = (warp & 3) * 8, element = at + (threadIdx.x & 31) / 4; // of a box's units
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
#pragma unroll
        for (int box = 0; box < SHARE_COLS / IMAGES; box++) {
            const int image0 = first_image + box * IMAGES, unit0 = first_unit + (warp / 4 * M_TILES + m) * WIDE;
            outbox.pass([&](u32 place) {
                float z[2 * EIGHTS], g[2 * EIGHTS], u[2 * EIGHTS];
#pragma unroll
                for (int j = 0; j < EIGHTS; j++) {
                    float4 v = total[m][box * EIGHTS + j];
                    if (SPLIT_FP32) {
                        const float s0 = scale[(box * EIGHTS + j) * 2], s1 = scale[(box * EIGHTS + j) * 2 + 1];
                        v.x *= s0, v.y *= s1, v.z *= s0, v.w *= s1;
                    }
                    g[2 * j] = v.x, g[2 * j + 1] = v.y, u[2 * j] = v.z, u[2 * j + 1] = v.w;
                    gate_pair(v, z[2 * j], z[2 * j + 1]);
                }
                B::put(place, at, element, z);
                if (Sent::GATES) B::put(place + B::BYTES, at, element, g), B::put(place + 2 * B::BYTES, at, element, u);
            }, [&](u32 place) {
                tma_store(to_z, place, unit0, image0);
                if (Sent::GATES) tma_store(to_gates, place + B::BYTES, unit0, image0, 0);
            });
        }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    hopper_swiglu_forward(const __grid_constant__ TensorMap wf, const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap to_z, const __grid_constant__ TensorMap to_gates, const float *scale, int gates, int batch, int inputs, int hidden) {
    extern __shared__ __align__(1024) u8 shared[];
    if (threadIdx.x == MULTIPLIERS) tma_prefetch(wf), tma_prefetch(x);
    Ring ring = start_ring(shared_address(shared) + RESULTS);
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
        Outbox<Sent<true>::BYTES> with_gates(ring);
        Outbox<Sent<false>::BYTES> alone(ring);
        Sums sums;
        for (u32 item = cluster; item < work; item += clusters) {
            const TilePlace at = place_of(item);
            const int first_unit = at.a, first_image = at.b + p.split * SHARE_COLS;
            float image_scale[SHARE_COLS / 4]; // of the images that a thread finishes
            constexpr bool ASKS_EARLY = MIN_BLOCKS == 1; // else there are no registers to hold them while the product runs
            if (SPLIT_FP32 && ASKS_EARLY) {
                wait_for_last();
                load_factors(image_scale, scale, first_image, batch);
            }
            multiply<false, false>(sums, ring, end - begin, p, One());
            if (item + clusters >= work) let_next_start();
            wait_for_last();
            // From here on the loader fills the ring for the next tile.
            Totals total;
            add_up(total, sums, ring, p);
            if (SPLIT_FP32 && !ASKS_EARLY) load_factors(image_scale, scale, first_image, batch);
            if (SPLITS > 1) barrier_among(1, MULTIPLIERS); // everyone has read what results are now put over
            if (gates) send_tile<Sent<true>>(with_gates, total, to_z, to_gates, image_scale, first_unit, first_image, batch);
            else send_tile<Sent<false>>(alone, total, to_z, to_gates, image_scale, first_unit, first_image, batch);
            if (SPLITS > 1) {
                alone.leave();
                cluster_arrive();
            }
        }
        alone.leave();
    }
    end_ring();
}
