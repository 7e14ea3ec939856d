// W <- one step of SGD with dW = dy^T x on Hopper        dy (B, rows), x (B, columns), W and its velocity (rows, columns), always fp32
//
// For a SwiGLU layer dy is [dg | du] and x the layer's input; for the stem dy is the gradient of its output and x the images, and its bias takes its step
// here too, with db = the column sums of dy.
//
// Reads     dy and x by TMA, along the batch: both tiles lie with K in rows. bf16 wgmma reads such tiles as they are; TF32 and fp32-emulated take A
//           through registers, TF32's B is x transposed in memory (hopper_transpose.cu), fp32-emulated's B the split x (hopper_split.cu). W, velocity.
// Writes    W, velocity, and (bf16) the copy of W that products read. dW is never written.
// Launches  1, persistent
// Wins      over a product and an optimiser's kernel by dW, written and read: 8 bytes a weight of 24
// Loses     where gradients must be seen before any step is taken (clipping by their norm): hopper_swiglu_dwf.cu then
//
// At small B this is a stream over the weights, and all that counts is how many bytes are under way. So W and its velocity pass through a ring of slots of
// their own, 32 columns each: one warp asks for them, from before the kernel ahead has ended (nothing ahead of it writes them); the threads that hold the
// sums step them where they lie; another warp sends them back. L2 is told to let go first of what goes back, so that it keeps what the next forward reads.
// It is not told so of what comes: TMA asks memory for 256 bytes at a time, of which a slot takes 128, and the rest would be gone before its turn.
//
// BESIDE 1 (TF32, large batches, many tiles a block): the products of a tile and the step of the tile before run beside each other, or tensor cores would wait while weights pass. A thread
// keeps the sums of the tile before; while its products run it steps an eighth of them at a time, four pairs of weights read at once. Each warpgroup has slots of its own, of its 64 rows, and the second
// begins to step later than the first. Few bytes of slots do, as steps are spread over a product's time: so the ring, for which L2 has less left now, has more.
//
// JOBS 2: two weights, whose gradients are sums over the same batch, in one launch: blocks take the tiles of the other, then those of the last. At D = 512 each
// fills the chip badly alone, with tiles so small that operands are read over and over; at D = 2048 there is one beginning and one end less.
//
// The loader's warps: 0 feeds the product, 1 the slots, 2 empties them, 3 sums the bias.
//
// Maps: `dgrad` dy (B, rows), box (128 bytes, K_TILE); `x` (N, columns), box (64, 64), or TF32: x^T (columns, N), box (32, COLS), or fp32-emulated: its
// planes (2 N, columns) fp16, box (64, 64), and `scale` (B); `weight`, `velocity` (rows, columns) fp32, box (32, SLOT_ROWS), 128-byte swizzle; `copy`
// (rows, columns) bf16, box (32, SLOT_ROWS), 64-byte swizzle (other precisions: any map). SLOT_ROWS: ROWS, or with BESIDE 64. N = `x_rows` images, of which the batch's begin at
// `first`, or, where `step` is given, at `first` + *step * B (columns of x^T: B to the next multiple of 4). `bias` and `bias_velocity` (rows), or null.
// Grid: at most ceil(rows / ROWS) * ceil(columns / COLS) blocks, of both weights. SPLITS, SHARE_A and SHARE_B are 1. Shared memory: STATE_SLOTS * SLOT_ROWS * 256 bytes (320 with
// copies) before the ring, STATE_SLOTS * 24 after it. BESIDE: more than 8 stages of the batch, two warpgroups, slots in pairs.
#include "hopper_over_batch.cuh"
#include "hopper_stream.cuh"
#include "sgd.cuh"

#ifndef STATE_SLOTS
#define STATE_SLOTS 2
#endif
#ifndef JOBS
#define JOBS 1
#endif
#ifndef BESIDE
#define BESIDE 0
#endif
static_assert(CLUSTER == 1, "a block owns its tile");

constexpr bool COPIES = PRECISION == 2;
constexpr int WIDE = 32, CHUNKS = COLS / WIDE; // columns of a slot; slots of a tile
constexpr int STEP_PARTS = BESIDE ? 2 * CHUNKS : CHUNKS; // in which a tile is stepped
constexpr int HALVES = BESIDE ? 2 : 1, SLOT_ROWS = ROWS / HALVES;
// A slot that both warpgroups took in turns could be two phases ahead of the one that waits for it.
static_assert(!BESIDE || (WARPGROUPS == 2 && M_TILES == 1 && STATE_SLOTS % 2 == 0), "every slot is one warpgroup's");
constexpr int STATE_BYTES = SLOT_ROWS * WIDE * 4, SLOT_BYTES = 2 * STATE_BYTES + (COPIES ? STATE_BYTES / 2 : 0);

// One weight and what its gradient is made of.
struct Job {
    const TensorMap *dgrad, *x, *weight, *velocity, *copy;
    const float *scale;
    const u32 *step;
    int first, x_rows, rows, cols;
    DEVICE u32 tiles_a() const { return (rows + ROWS - 1) / ROWS; }
    DEVICE u32 tiles_b() const { return (cols + COLS - 1) / COLS; }
};

// Visits the tiles of this block, those of the second weight after those of the first, and the slots of a tile: f(job, row0, col0) once a tile; f(job, row, col)
// once a slot.
template <class F> DEVICE void each_tile(const Job &one, const Job &two, const F &f) {
    const u32 of_one = one.tiles_a() * one.tiles_b(), of_two = JOBS == 2 ? two.tiles_a() * two.tiles_b() : 0;
    for (u32 item = blockIdx.x; item < of_one + of_two; item += gridDim.x) {
        const bool first = JOBS == 1 || item < of_one;
        const Job job = first ? one : two;
        const TilePlace at = tile_place(first ? item : item - of_one, job.tiles_a(), job.tiles_b());
        f(job, at.a * ROWS, at.b * COLS);
    }
}
template <class F> DEVICE void each_slot(const Job &one, const Job &two, const F &f) {
    each_tile(one, two, [&](const Job &job, int row0, int col0) {
        for (int chunk = 0; chunk < CHUNKS && col0 + chunk * WIDE < job.cols; chunk++)
            for (int half = 0; half < HALVES; half++) f(job, row0 + half * SLOT_ROWS, col0 + chunk * WIDE);
    });
}

// What multiply() does beside a product: part after part of the step of another tile.
template <class F> struct Beside {
    static constexpr int PARTS = STEP_PARTS;
    const F &step;
    DEVICE void operator()(int part) const { step(part); }
};

// The bias, by one warp: each block takes 16 bytes of dy's columns at a time, each lane every 32nd image.
DEVICE void step_bias(const T *dy, float *bias, float *velocity, Sgd sgd, int batch, int rows) {
    constexpr int N = Vec<T>::N;
    const int lane = threadIdx.x & 31;
    sgd.weight_decay = 0.f; // weights decay, biases do not
    for (int col = blockIdx.x * N; col < rows; col += gridDim.x * N) {
        float sum[N] = {};
#pragma unroll 4
        for (int b = lane; b < batch; b += 32) {
            float v[N];
            unpack16(load16(dy + offset(b, rows) + col), v, T());
#pragma unroll
            for (int e = 0; e < N; e++) sum[e] += v[e];
        }
#pragma unroll
        for (int e = 0; e < N; e++) {
            const float total = warp_sum(sum[e]);
            if (lane == e) {
                float w = bias[col + e], v = velocity[col + e];
                sgd_step(sgd, total, w, v);
                bias[col + e] = w, velocity[col + e] = v;
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    hopper_weight_step(
#if JOBS == 2
        const __grid_constant__ TensorMap other_dgrad, const __grid_constant__ TensorMap other_x, const __grid_constant__ TensorMap other_weight, const __grid_constant__ TensorMap other_velocity,
        const __grid_constant__ TensorMap other_copy, const float *other_scale, const u32 *other_step, int other_first, int other_x_rows, int other_rows, int other_cols,
#endif
        const __grid_constant__ TensorMap dgrad, const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight, const __grid_constant__ TensorMap velocity,
        const __grid_constant__ TensorMap copy, const float *scale, const u32 *step, int first, int x_rows, int rows, int cols, const T *dy, float *bias, float *bias_velocity, const float *lr,
        const float *gradient_scale, float momentum, float weight_decay, int nesterov, int batch) {
    const Job two{&dgrad, &x, &weight, &velocity, &copy, scale, step, first, x_rows, rows, cols};
#if JOBS == 2
    const Job one{&other_dgrad, &other_x, &other_weight, &other_velocity, &other_copy, other_scale, other_step, other_first, other_x_rows, other_rows, other_cols};
    if (threadIdx.x == MULTIPLIERS) tma_prefetch(other_dgrad), tma_prefetch(other_x);
#else
    const Job one = two;
#endif
    extern __shared__ __align__(1024) u8 shared[];
    const u32 base = shared_address(shared), stages = base + STATE_SLOTS * SLOT_BYTES;
    Slots<STATE_SLOTS, SLOT_BYTES> slots{base, stages + RING_BYTES + BARRIER_BYTES, 0, 0};
    if (threadIdx.x == MULTIPLIERS) tma_prefetch(dgrad), tma_prefetch(x);
    if (threadIdx.x == MULTIPLIERS + 32) tma_prefetch(weight), tma_prefetch(velocity);
    if (threadIdx.x == 0) slots.init(slots, 4 * WARPGROUPS / HALVES);
    Ring ring = start_ring(stages);
    const Place p = place();
    const int tiles = (batch + K_TILE - 1) / K_TILE;
    if (threadIdx.x >= MULTIPLIERS) {
        become_loader();
        const int warp = (threadIdx.x - MULTIPLIERS) / 32;
        const bool alone = (threadIdx.x & 31) == 0;
        if (warp == 0 && alone) {
            wait_for_last();
            each_tile(one, two, [&](const Job &job, int row0, int col0) {
                const int image0 = job.first + (job.step ? (int)*job.step * (PRECISION == 1 ? (batch + 3) & ~3 : batch) : 0);
                for (int tile = 0; tile < tiles; tile++)
                    feed(ring, [&](u32 a, u32 b, u32 full) { load_over_batch(a, b, full, *job.dgrad, *job.x, tile * K_TILE, row0, col0, image0, job.x_rows); });
            });
            let_next_start();
        } else if (warp == 1 && alone) {
            each_slot(one, two, [&](const Job &job, int row, int col) {
                barrier_wait(slots.left(), slots.parity ^ 1);
                barrier_expect(slots.come(), 2 * STATE_BYTES);
                tma_load(slots.at(), *job.weight, slots.come(), col, row);
                tma_load(slots.at() + STATE_BYTES, *job.velocity, slots.come(), col, row);
                slots.next();
            });
        } else if (warp == 2 && alone) {
            const u64 first_to_go = evict_first();
            each_slot(one, two, [&](const Job &job, int row, int col) {
                barrier_wait(slots.stepped(), slots.parity);
                tma_store(*job.weight, slots.at(), col, row, first_to_go);
                tma_store(*job.velocity, slots.at() + STATE_BYTES, col, row, first_to_go);
                if (COPIES) tma_store(*job.copy, slots.at() + 2 * STATE_BYTES, col, row, stays());
                stores_commit();
                stores_read();
                barrier_arrive(slots.left());
                slots.next();
            });
            stores_done();
        } else if (warp == 3 && bias) {
            wait_for_last();
            step_bias(dy, bias, bias_velocity, sgd_settings(lr, gradient_scale, momentum, weight_decay, nesterov), batch, rows);
        }
    } else {
        become_multiplier();
        wait_for_last();
        const Sgd sgd = sgd_settings(lr, gradient_scale, momentum, weight_decay, nesterov);
        const int lane = threadIdx.x & 31, row0 = HALVES == 2 ? 0 : threadIdx.x / 128 * M_TILES * 64; // of the warpgroup, in a slot
        // Steps one of STEP_PARTS parts of a tile in its slot: all of it or, with BESIDE, half of its columns.
        const auto step_part = [&](const Sums &sums, int part) {
            constexpr int OF_SLOT = STEP_PARTS / CHUNKS, EIGHTS = WIDE / 8 / OF_SLOT;
            constexpr int TOGETHER = BESIDE ? 4 : 1; // pairs of weights that are read before any of them is written
#pragma unroll
            for (int m = 0; m < M_TILES; m++)
#pragma unroll
                for (int first = 0; first < EIGHTS * 2; first += TOGETHER) {
                    float2 w[TOGETHER], v[TOGETHER];
                    const auto eight = [&](int i) { return part % OF_SLOT * EIGHTS + (first + i) / 2; };
                    const auto row = [&](int i) { return row0 + 64 * m + row_of_sums((first + i) & 1); }; // the thread's two rows
                    const auto within = [&](int i) { return row(i) * 128 + (((2 * eight(i) + (lane >> 1 & 1)) ^ (row(i) & 7)) << 4) + (lane & 1) * 8; };
#pragma unroll
                    for (int i = 0; i < TOGETHER; i++) w[i] = load_shared_pair(slots.at() + within(i)), v[i] = load_shared_pair(slots.at() + STATE_BYTES + within(i));
#pragma unroll
                    for (int i = 0; i < TOGETHER; i++) {
                        const float *sum = sums.v[m] + 4 * (part * EIGHTS + (first + i) / 2) + 2 * ((first + i) & 1);
                        sgd_step(sgd, sum[0], w[i].x, v[i].x);
                        sgd_step(sgd, sum[1], w[i].y, v[i].y);
                        store_shared_pair(slots.at() + within(i), w[i]);
                        store_shared_pair(slots.at() + STATE_BYTES + within(i), v[i]);
                        if (COPIES) {
                            const u32 to = slots.at() + 2 * STATE_BYTES + row(i) * 64 + ((eight(i) ^ (row(i) >> 1 & 3)) << 4) + (lane & 3) * 4;
                            asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(pack_bf16(w[i].x, w[i].y)) : "memory");
                        }
                    }
                }
        };
        // Hands a slot that is stepped to the copy engine.
        const auto send = [&] {
            fence_shared(); // the copy engine reads what this thread wrote
            __syncwarp();
            if (lane == 0) barrier_arrive(slots.stepped());
#pragma unroll
            for (int half = 0; half < HALVES; half++) slots.next();
        };
#if BESIDE
        if (threadIdx.x >= 128) slots.next();
        Sums last; // of the tile before, which begins at column `last_col0` of `last_cols`
        int last_col0 = 0, last_cols = 0;
        const auto step_last = [&](int part) {
            if (last_col0 + part / 2 * WIDE >= last_cols) return;
            if (part % 2 == 0) barrier_wait(slots.come(), slots.parity);
            step_part(last, part);
            if (part % 2 == 1) send();
        };
#endif
        each_tile(one, two, [&](const Job &job, int, int col0) {
            // (rows, B) @ (B, columns) -> (rows, columns)
            Sums sums;
            const auto factor = [&](int k, int) { return k < batch ? job.scale[k] : 0.f; };
#if BESIDE
            multiply<true, PRECISION != 1>(sums, ring, tiles, p, factor, Beside<decltype(step_last)>{step_last});
            last = sums, last_col0 = col0, last_cols = job.cols;
            pin(last.v[0]);
#else
            multiply<true, PRECISION != 1>(sums, ring, tiles, p, factor);
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; chunk++) {
                if (col0 + chunk * WIDE >= job.cols) break;
                barrier_wait(slots.come(), slots.parity);
                step_part(sums, chunk);
                send();
            }
#endif
        });
#if BESIDE
#pragma unroll
        for (int part = 0; part < STEP_PARTS; part++) step_last(part);
#endif
    }
}
