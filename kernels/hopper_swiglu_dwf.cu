// dWf = [dg | du]^T x on Hopper        [dg | du] (B, 2H), x (B, D), dWf (2H, D), of T: summed in fp32, rounded once
//
// Reads     [dg | du] and x by TMA, along the batch: both tiles lie with K in rows. bf16 wgmma reads such tiles as they are; TF32 and fp32-emulated take A
//           through registers, TF32's B is x transposed in memory (by hopper_swiglu_backward_dx.cu), fp32-emulated's B the split x (hopper_split.cu).
// Writes    dWf
// Launches  1, persistent
// Wins      over a library product, most in TF32; at large B by wgmma, at small B it is a stream of writes
// Loses     to hopper_weight_step.cu, which writes no gradient, where a step may be taken at once
//
// At small B all that counts is how many bytes are on their way to memory. So results pass beside the ring: a warpgroup has BOXES places for 64 rows x 128
// bytes, and each of its warps puts its 16 rows there (in TF32 two eights), hands them to the copy engine, and goes on to the next, or to the next tile's
// product. No warp waits for another, and the fence is of shared memory alone: a fence of all memory waits for more than it has to, and took a third of the time at 256 x 4096 (HOPPER.md).
// L2 is told to let go of what is written first, so that it keeps the weights that the next forward reads.
//
// B_STAYS 1 (fp32-emulated, up to 64 images, which one stage holds): a block has one tile of x's columns for as long as it runs, beside the ring, and rows of
// [dg | du] pass through the ring alone: half of what is read from L2. The next rows are split while the products of these run, and those are the sums.
//
// BESIDE 1: dx's kernel, launched right before with EARLY 2, lets this one start when [dg | du] stands and goes on beside it: their shared memory and registers
// fit one multiprocessor together. Nothing of dx is read; but whoever is after this kernel has to find dx, so it is waited for before the next may start: by an idle warp,
// or in TF32, where the next kernel's early blocks were measured to cost more than they save, before the last tile's results leave.
//
// Maps: `dgrad` [dg | du] (B, 2H), box (128 bytes, K_TILE); `x` (B, D), box (64, 64), or TF32: x^T (D, B), box (32, COLS), or fp32-emulated: its planes
// (2B, D) fp16, box (64, 64), and `scale` (B); `dwf` (2H, D), box (128 bytes, TOGETHER), 128-byte swizzle.
// Grid: at most ceil(2 H / ROWS) * ceil(D / COLS) blocks; B_STAYS: a multiple of ceil(D / COLS), at most that many. SPLITS, SHARE_A and SHARE_B are 1. Shared
// memory: RESULTS bytes before the ring, of which x's tile takes the first, if it stays.
#include "hopper_over_batch.cuh"
#include "hopper_stream.cuh"

#ifndef BESIDE
#define BESIDE 0
#endif
constexpr bool IDLE_WAITS = BESIDE && PRECISION == 2;
static_assert(CLUSTER == 1, "a block owns its tile");
constexpr int BOX_BYTES = 64 * 128, BOX_COLS = 128 / (int)sizeof(T); // of results on their way
constexpr int STAYS_BYTES = B_STAYS ? B_BYTES : 0;
constexpr int BOXES = (RESULTS - STAYS_BYTES) / BOX_BYTES / WARPGROUPS; // places for them that a warpgroup has
// Neighbouring rows of sums that a warp has: TF32's rows stand in another order (row_of_sums), in which a warp has two eights of 32 rows, 16 apart.
constexpr int TOGETHER = PRECISION == 1 ? 8 : 16;
static_assert(!B_STAYS || (SPLIT_FP32 && HANDS_REGISTERS && M_TILES == 1 && !BESIDE), "a stage's products are the sums, and its factors stay in registers");
static_assert(BOXES >= 1 && RESULTS % 1024 == 0, "results pass beside the ring, which begins on 1024 bytes");

// 64 rows x BOX_COLS columns of sums, from column 8 `j0` on, rounded, as a swizzled box at `box`.
DEVICE void put_box(u32 box, const float (&sums)[SUMS], int j0) {
    const int lane = threadIdx.x & 31;
#if PRECISION == 2
    // Four 8 x 8 matrices at once: rows 0 to 7 and 8 to 15 of two neighbouring groups of columns; each lane names one of their rows.
    const int row = (threadIdx.x / 32 & 3) * 16 + (lane & 15);
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
        const float *v = sums + 4 * (j0 + j);
        const u32 to = box + row * 128 + (((j + (lane >> 4)) ^ (row & 7)) << 4);
        asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(pack_bf16(v[0], v[1])), "r"(pack_bf16(v[2], v[3])), "r"(pack_bf16(v[4], v[5])),
                     "r"(pack_bf16(v[6], v[7])) : "memory");
    }
#else
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = row_of_sums(half);
            const u32 to = box + row * 128 + (((2 * j + (lane >> 1 & 1)) ^ (row & 7)) << 4) + (lane & 1) * 8;
            asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(sums[4 * (j0 + j) + 2 * half]), "f"(sums[4 * (j0 + j) + 2 * half + 1]) : "memory");
        }
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    hopper_swiglu_dwf(const __grid_constant__ TensorMap dgrad, const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap dwf, const float *scale, int batch, int inputs, int hidden) {
    extern __shared__ __align__(1024) u8 shared[];
    if (threadIdx.x == MULTIPLIERS) tma_prefetch(dgrad), tma_prefetch(x);
    const u32 results = shared_address(shared);
    Ring ring = start_ring(results + RESULTS);
    const Place p = place();
    const u32 tiles_a = (2 * hidden + ROWS - 1) / ROWS, tiles_b = (inputs + COLS - 1) / COLS, work = tiles_a * tiles_b;
    const u32 column = blockIdx.x % tiles_b * COLS, first_row = blockIdx.x / tiles_b, row_step = gridDim.x / tiles_b; // if B stays
    const int tiles = (batch + K_TILE - 1) / K_TILE;
    if (threadIdx.x >= MULTIPLIERS) {
        become_loader();
        if (threadIdx.x == MULTIPLIERS) {
            if (BESIDE) { // every block of dx fenced what it wrote before it let this one start
                fence_chip();
                fence_async();
            } else wait_for_last();
            if (B_STAYS)
                for (u32 row = first_row; row < tiles_a; row += row_step) {
                    barrier_wait(ring.empty(ring.slot), ring.parity ^ 1);
                    const u32 full = ring.full(ring.slot);
                    const bool first = row == first_row;
                    barrier_expect(full, A_BYTES + (first ? B_BYTES : 0));
                    load_rows_over_batch(ring.a(), full, dgrad, 0, row * ROWS);
                    if (first) load_columns_over_batch(results, full, x, 0, column, 0, batch);
                    ring.next();
                }
            else for (u32 item = blockIdx.x; item < work; item += gridDim.x) {
                const TilePlace at = tile_place(item, tiles_a, tiles_b);
                for (int tile = 0; tile < tiles; tile++)
                    feed(ring, [&](u32 a, u32 b, u32 full) { load_over_batch(a, b, full, dgrad, x, tile * K_TILE, at.a * ROWS, at.b * COLS, 0, batch); });
            }
        } else if (IDLE_WAITS && threadIdx.x == MULTIPLIERS + 32) {
            wait_for_last(); // the next kernel finds all but this one ended, as early.cuh promises
            let_next_start();
        }
    } else {
        become_multiplier();
        const int group = threadIdx.x / 128;
        const bool sends = (threadIdx.x & 31) == 0; // for its warp, whose first row it has
        const int warp_row = row_of_sums(0);
        const u64 first_to_go = evict_first();
        const u32 boxes = results + STAYS_BYTES + group * BOXES * BOX_BYTES;
        int box = 0;
        if (!BESIDE) wait_for_last();
        const auto scale_at = [&](int k) { return k < batch ? scale[k] : 0.f; };
#if B_STAYS
        float held[16]; // a stage holds all images, whose factors a thread keeps for all its tiles
#pragma unroll
        for (int i = 0; i < 16; i++) held[i] = scale_at(i / 4 * 16 + (int)(threadIdx.x & 3) * 2 + i % 2 + i % 4 / 2 * 8);
#endif
        // A tile's sums on their way, those of rows `row0` and columns `col0` on.
        const auto send = [&](const Sums &sums, int row0, int col0) {
#pragma unroll
            for (int m = 0; m < M_TILES; m++)
#pragma unroll
                for (int col = 0; col < COLS; col += BOX_COLS) {
                    const u32 place = boxes + box * BOX_BYTES;
                    if (sends) stores_read<BOXES - 1>(); // the warp's rows that were here before are gone
                    __syncwarp();
                    put_box(place, sums.v[m], col / 8);
                    fence_shared(); // the copy engine reads what this thread wrote
                    __syncwarp();
                    if (sends) {
#pragma unroll
                        for (int part = 0; part < 16 / TOGETHER; part++) {
                            const int row = warp_row + 16 * part;
                            tma_store(dwf, place + row * 128, col0 + col, row0 + (group * M_TILES + m) * 64 + row, first_to_go);
                        }
                        stores_commit();
                    }
                    if (++box == BOXES) box = 0;
                }
        };
        // (2H, B) @ (B, D) -> (2H, D)
        Sums sums;
#if B_STAYS
        const auto load = [&](SplitRows &to) {
            barrier_wait(ring.full(ring.slot), ring.parity);
            split_rows<true>(to, ring.a() + group * (64 * 256), [&](int, int i) { return held[i]; });
            release(ring, ring.slot, p); // from here on these rows are in registers
            ring.next();
        };
        const auto step = [&](SplitRows &now, SplitRows &next, u32 row) {
            start_split<true>(sums.v[0], now, results);
            if (row + row_step < tiles_a) load(next);
            else let_next_start();
            wait_split(sums.v[0], now);
#pragma unroll
            for (int j = 0; j < SUMS; j++) sums.v[0][j] *= now.down[j >> 1 & 1];
            send(sums, row * ROWS, column);
        };
        SplitRows even, odd;
        load(even);
        for (u32 row = first_row; row < tiles_a; row += 2 * row_step) {
            step(even, odd, row);
            if (row + row_step < tiles_a) step(odd, even, row + row_step);
        }
#else
        for (u32 item = blockIdx.x; item < work; item += gridDim.x) {
            const TilePlace at = tile_place(item, tiles_a, tiles_b);
            multiply<true, PRECISION != 1>(sums, ring, tiles, p, [&](int k, int) { return scale_at(k); });
            if (!IDLE_WAITS && item + gridDim.x >= work) {
                if (BESIDE) wait_for_last();
                let_next_start();
            }
            send(sums, at.a * ROWS, at.b * COLS); // from here on the loader fills the ring for the next tile
        }
#endif
        if (sends) stores_read(); // shared memory lasts until it has been read
    }
}
