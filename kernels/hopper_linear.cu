// y = x W^T + bias on Hopper        x (B, K), W (N, K), bias (N) fp32, y (B, N)
//
// Reads     x and W by TMA, through L2 once for each tile that needs them; bias
// Writes    y
// Launches  1
// Wins      over a library product, which has no epilogue for a bias here, by a launch and 2 B N elements of traffic
// Loses     -
//
// hopper_swiglu_forward.cu without the gate: 16 rows of a warp's wgmma are 16 outputs, and a thread adds the biases of its two to its sums.
//
// Maps: `w` (N, K), box (128 bytes, ROWS / SHARE_A); `x` (images, K), box (128 bytes, COLS / SHARE_B); fp32-emulated: `x` is the split x, (2 `x_rows`, K)
// fp16 with hi in the first x_rows rows and lo in the rest, `scale` (B) what to multiply row b of the product by. Of the `x_rows` images of x the batch's
// begin at `first`, or, where `step` is given, at `first` + *step * B.
// Grid: CLUSTER * ceil(N / ROWS / SHARE_B) * ceil(B / COLS / SHARE_A) blocks of THREADS threads, clusters of CLUSTER.
#include "hopper_staging.cuh"

constexpr int IMAGES = images_at_once(Staging<T, ROWS, 1>::BYTES); // whose y are on their way at once
static_assert(Staging<T, ROWS, IMAGES>::BYTES <= RESULTS, "results pass beside the ring");

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    hopper_linear(const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap x, const float *scale, const float *bias, T *y, const u32 *step, int first, int x_rows, int batch,
                  int inputs, int outputs) {
    extern __shared__ __align__(1024) u8 shared[];
    if (threadIdx.x == MULTIPLIERS) tma_prefetch(w), tma_prefetch(x);
    Ring ring = start_ring(shared_address(shared) + RESULTS);
    const Place p = place();
    const u32 tiles_a = ((outputs + ROWS - 1) / ROWS + SHARE_B - 1) / SHARE_B, tiles_b = ((batch + COLS - 1) / COLS + SHARE_A - 1) / SHARE_A;
    const TilePlace at = tile_place(blockIdx.x / CLUSTER, tiles_a, tiles_b);
    const int output0 = (at.a * SHARE_B + p.b) * ROWS, row0 = (at.b * SHARE_A + p.a) * COLS;
    int begin, end;
    split_tiles(inputs, p.split, begin, end);

    // y^T = W x^T: (N, K) @ (K, B) -> (N, B)
    if (threadIdx.x >= MULTIPLIERS) {
        become_loader();
        if (threadIdx.x == MULTIPLIERS) {
            const u32 mask_a = sharers_of_a(p), mask_b = sharers_of_b(p);
            const int image0 = first + (step ? (int)load_early(step) * batch : 0); // the kernel ahead moves no step
            wait_for_last();
            for (int tile = begin; tile < end; tile++)
                feed(ring, [&](u32 a, u32 b, u32 full) {
                    constexpr int A_ROWS = ROWS / SHARE_A, B_ROWS = COLS / SHARE_B;
#pragma unroll
                    for (int plane = 0; plane < PLANES; plane++) { // A: 32 elements of K a plane; B: hi, lo
                        const u32 to_a = a + plane * (ROWS * 128) + p.a * (A_ROWS * 128), to_b = b + plane * (COLS * 128) + p.b * (B_ROWS * 128);
                        const int k = tile * K_TILE, output = output0 + (int)p.a * A_ROWS, image = image0 + row0 + (int)p.b * B_ROWS + plane * x_rows;
                        if (SHARE_A > 1) tma_share(to_a, w, full, mask_a, k + 32 * plane, output);
                        else tma_load(to_a, w, full, k + 32 * plane, output);
                        if (SHARE_B > 1) tma_share(to_b, x, full, mask_b, k, image);
                        else tma_load(to_b, x, full, k, image);
                    }
                });
        }
        __syncwarp();
        finish_beside();
    } else {
        become_multiplier();
        wait_for_last();
        const int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
        const auto row_of = [&](int m) { return (warp / 4 * M_TILES + m) * 64 + (warp & 3) * 16; };
        float add[M_TILES][2];
#pragma unroll
        for (int m = 0; m < M_TILES; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) add[m][half] = bias[min(output0 + row_of(m) + lane / 4 + 8 * half, outputs - 1)];
        Sums sums;
        multiply<false, false>(sums, ring, end - begin, p, One());
        let_next_start();
        const Staging<T, ROWS, IMAGES> out{ring.results()};
        const int image0 = row0 + p.split * SHARE_COLS;
        const auto put = [&](int m, int j, float4 v) {
            const int staged = j % (IMAGES / 8);
            if (SPLIT_FP32) {
                const int image = image0 + 8 * j + (lane & 3) * 2;
                const float s0 = scale[min(image, batch - 1)], s1 = scale[min(image + 1, batch - 1)];
                v.x *= s0, v.y *= s1, v.z *= s0, v.w *= s1;
            }
            out.put(row_of(m), staged, v.x + add[m][0], v.y + add[m][0]);
            out.put(row_of(m) + 8, staged, v.z + add[m][1], v.w + add[m][1]);
        };
        finish<SHARE_COLS / IMAGES>(sums, ring, p, Nothing(), put, [&](int round) { out.write(y, image0 + round * IMAGES, batch, output0, outputs, outputs); });
    }
    end_ring();
}
