// Hopper's product of a weight (rows, M) with a batch (columns, N), summed over K: D (M, N) = A (M, K) B (K, N). What the three Hopper kernels share.
//
// The weight takes the 64-row side of wgmma and the batch the N side, so that a batch of 64 fills a tile of 64 and needs no more of the chip than it is.
//
// A block: one warp that feeds a ring of stages by TMA, and WARPGROUPS warpgroups that multiply, each M_TILES times 64 rows of A by all N columns.
// A cluster of SPLITS * SHARE_A * SHARE_B blocks:
//   SPLITS   blocks take ranges of K of the same tile and add up through each other's shared memory, in a fixed order (results do not depend on timing)
//   SHARE_A  blocks with the same rows and other columns: each loads a part of A's tile, and the copy engine hands it to all
//   SHARE_B  blocks with the same columns and other rows, likewise for B
//
// A stage is 128 bytes of K for 16-bit operands (64 elements). What the precisions do with it:
//   PRECISION 2  bf16: wgmma reads both operands in shared memory.
//   PRECISION 1  TF32: K is 32 elements, which the copy engine rounds to nearest on their way (wgmma alone would truncate: twice the error, and with a sign).
//                wgmma reads TF32 along K only; where A lies the other way it goes through registers.
//   PRECISION 3  fp32-emulated: A is fp32 and split in registers, B is split in memory (hopper_split.cu): x = (hi + lo) 2^-s with hi, lo fp16, 22 bits together;
//                hi hi + hi lo + lo hi on the tensor cores. For A, s belongs to a row and a stage (64 elements); for B to a whole row of the batch.
//                Tensor cores truncate when they add; so a stage's 64 products start from zero, and ordinary fp32 adds the stages, times 2^-s.
#pragma once
#include "hopper_fp16.cuh"
#include "hopper_tma.cuh"
#include "hopper_wgmma.cuh"

#ifndef WARPGROUPS
#define WARPGROUPS 2
#define M_TILES 2
#define BATCH_TILE 128
#define RING_STAGES 4
#define SPLITS 1
#define SHARE_A 1
#define SHARE_B 1
#define MIN_BLOCKS 1
#endif
#ifndef RESULTS
#define RESULTS 0
#endif
#ifndef KEPT
#define KEPT 0
#endif
#ifndef B_STAYS
#define B_STAYS 0
#endif

constexpr int CLUSTER = SPLITS * SHARE_A * SHARE_B;
constexpr int ROWS = 64 * M_TILES * WARPGROUPS;  // of A, in a block's tile
constexpr int COLS = BATCH_TILE;                 // of B
constexpr int MULTIPLIERS = 128 * WARPGROUPS;    // threads that multiply
constexpr int THREADS = MULTIPLIERS + 128;       // and a warpgroup that loads (one thread of it)
constexpr int K_TILE = PRECISION == 1 ? 32 : 64; // of K in a stage
constexpr int SUMS = COLS / 2;                   // a thread's sums of 64 rows
constexpr bool SPLIT_FP32 = PRECISION == 3;
constexpr int PLANES = SPLIT_FP32 ? 2 : 1;       // of an operand in a stage
constexpr int A_BYTES = ROWS * (SPLIT_FP32 ? 256 : 128), B_BYTES = COLS * (SPLIT_FP32 ? 256 : 128), STAGE_BYTES = A_BYTES + (B_STAYS ? 0 : B_BYTES);
constexpr int RING_BYTES = RING_STAGES * STAGE_BYTES;
constexpr int PART_BYTES = ROWS * COLS * 4 / SPLITS; // of sums, that a split sends another
static_assert(RESULTS >= (SPLITS - 1) * PART_BYTES, "the other splits' sums land beside the ring");
static_assert(RESULTS % 1024 == 0, "the ring begins on 1024 bytes");

// Which block of its cluster this is.
struct Place {
    u32 rank, split, a, b; // a: among those that share A; b: among those that share B
};
DEVICE Place place() {
    if (CLUSTER == 1) return Place{0, 0, 0, 0};
    const u32 rank = cluster_rank();
    return Place{rank, rank % SPLITS, rank / SPLITS % SHARE_A, rank / (SPLITS * SHARE_A)};
}
// The blocks that get this block's part of A, and of B.
DEVICE u32 sharers_of_a(const Place &p) {
    u32 mask = 0;
#pragma unroll
    for (int i = 0; i < SHARE_A; i++) mask |= 1u << (p.split + SPLITS * (i + SHARE_A * p.b));
    return mask;
}
DEVICE u32 sharers_of_b(const Place &p) {
    u32 mask = 0;
#pragma unroll
    for (int i = 0; i < SHARE_B; i++) mask |= 1u << (p.split + SPLITS * (p.a + SHARE_A * i));
    return mask;
}

// The ring: stages in shared memory, then for each a barrier that says it is full and one that says it is empty. Before them lie RESULTS bytes through which
// results pass, so that the loader can fill the ring for the next tile meanwhile.
constexpr int BARRIER_BYTES = RING_STAGES * 16;
struct Ring {
    u32 stages;
    int slot;
    u32 parity;
    DEVICE u32 a() const { return stages + slot * STAGE_BYTES; }
    DEVICE u32 b() const { return a() + A_BYTES; }
    DEVICE u32 full(int at) const { return stages + RING_BYTES + at * 16; }
    DEVICE u32 empty(int at) const { return full(at) + 8; }
    DEVICE u32 results() const { return stages - RESULTS; }
    DEVICE void next() {
        if (++slot == RING_STAGES) slot = 0, parity ^= 1;
    }
};

// Registers go from the warpgroup that loads to those that multiply, where a block has a multiprocessor's, or half of them for 128 sums a thread.
constexpr bool TWO_LARGE = WARPGROUPS == 1 && MIN_BLOCKS == 2 && M_TILES * SUMS == 128;
constexpr bool HANDS_REGISTERS = (WARPGROUPS == 2 && MIN_BLOCKS == 1) || TWO_LARGE;
DEVICE void become_loader() {
    if constexpr (HANDS_REGISTERS) fewer_registers<TWO_LARGE ? 40 : 56>();
}
DEVICE void become_multiplier() {
    if constexpr (HANDS_REGISTERS) more_registers<TWO_LARGE ? 216 : 224>();
}

// Begins a block: barriers; blocks that load for each other know that all of them stand. From here to the end each block of a cluster is one arrival ahead:
// it has begun, or has read what landed, and can be sent to.
DEVICE Ring start_ring(u32 stages) {
    const Ring ring{stages, 0, 0};
    if (threadIdx.x == 0) {
#pragma unroll
        for (int s = 0; s < RING_STAGES; s++) {
            barrier_init(ring.full(s), 1);
            barrier_init(ring.empty(s), 4 * WARPGROUPS * (SHARE_A + SHARE_B - 1));
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        fence_async();
    }
    if (CLUSTER > 1) cluster_arrive();
    if (SHARE_A * SHARE_B > 1) {
        cluster_wait();
        cluster_arrive();
    } else {
        __syncthreads();
    }
    return ring;
}
// Ends one: nobody leaves while others may still signal its barriers, as they do until they have multiplied. With splits all have: their sums landed since.
DEVICE void end_ring() {
    if constexpr (SHARE_A * SHARE_B > 1) {
        __syncwarp();
        if (SPLITS == 1) {
            cluster_wait();
            cluster_arrive();
        }
        cluster_wait();
    }
}

// Feeds one stage: announces its bytes and lets `copies` issue them.
template <class Copies> DEVICE void feed(Ring &ring, const Copies &copies) {
    barrier_wait(ring.empty(ring.slot), ring.parity ^ 1);
    const u32 full = ring.full(ring.slot);
    barrier_expect(full, STAGE_BYTES);
    copies(ring.a(), ring.b(), full);
    ring.next();
}

// Feeds the first stages of tiles `begin` to `end` in two steps: A's part as far as the ring goes, then `until()`, then B's. Returns the tile to go on with.
template <class CopyA, class Until, class CopyB> DEVICE int feed_ahead(Ring &ring, int begin, int end, const CopyA &copy_a, const Until &until, const CopyB &copy_b) {
    const int last = min(begin + RING_STAGES, end);
    Ring ahead = ring;
    for (int tile = begin; tile < last; tile++)
        feed(ahead, [&](u32 a, u32, u32 full) { copy_a(a, full, tile); });
    until();
    for (int tile = begin; tile < last; tile++) {
        copy_b(ring.b(), ring.full(ring.slot), tile);
        ring.next();
    }
    return last;
}

// A weight larger than L2, read over and over, would find nothing of itself there: each line goes just before it is wanted again. So KEPT sixteenths of it, the
// same blocks of 64 x 64 for every kernel, are asked to stay and the others to go first. KEPT 0: as the hardware likes.
struct Weights {
    u64 stay, go;
    DEVICE Weights() : stay(KEPT ? evict_last() : 0), go(KEPT ? evict_first() : 0) {}
    // The box that holds element (`unit`, `input`) of the gate or up half.
    template <class... C> DEVICE void load(int unit, int input, u32 to, const TensorMap &map, u32 full, C... at) const {
        if (KEPT) tma_load_as((unit / 64 + input / 64) % 16 < KEPT ? stay : go, to, map, full, at...);
        else tma_load(to, map, full, at...);
    }
};

// A warp is done with a stage: tells every block that loads into this block's ring.
DEVICE void release(const Ring &ring, int slot, const Place &p) {
    if ((threadIdx.x & 31) != 0) return;
    const u32 barrier = ring.empty(slot);
    if constexpr (SHARE_A * SHARE_B == 1) {
        barrier_arrive(barrier);
    } else {
#pragma unroll
        for (int i = 0; i < SHARE_A; i++) barrier_arrive_at(barrier, p.split + SPLITS * (i + SHARE_A * p.b));
#pragma unroll
        for (int i = 0; i < SHARE_B; i++)
            if (i != (int)p.b) barrier_arrive_at(barrier, p.split + SPLITS * (p.a + SHARE_A * i));
    }
}

struct Sums {
    float v[M_TILES][SUMS];
};

// A's registers for the TF32 and the split product. `A_MN`: rows of the tile in shared memory are K (32 elements of M each), else they are M.
// Element (row, k) of the 64 rows from `tile` on.
template <bool A_MN> DEVICE u32 element_address(u32 tile, int row, int k) {
    if (A_MN) return tile + (row >> 5) * (K_TILE * 128) + k * 128 + ((((row & 31) >> 2) ^ (k & 7)) << 4) + (row & 3) * 4;
    return tile + (k >> 5) * (ROWS * 128) + row * 128 + ((((k & 31) >> 2) ^ (row & 7)) << 4) + (k & 3) * 4;
}
// Which of a warpgroup's 64 rows a thread's sums are of; `half` 1: those that wgmma has 8 rows further down. Where A goes through registers from rows of K
// (TF32's IN_TURNS), a warp loads four rows of K of each eight rows of A at once, and the swizzle puts neighbours among those into the same banks. Rows may stand
// in any order, if results are put back in it: so a warp takes fours of rows whose numbers differ by 5 in the third bit and above, and meets 32 banks.
template <bool IN_TURNS = PRECISION == 1> DEVICE int row_of_sums(int half) {
    const int warp = threadIdx.x / 32 & 3, row = (threadIdx.x & 31) / 4;
    if (!IN_TURNS) return warp * 16 + row + 8 * half;
    return (warp >> 1) * 32 + (((warp & 1) * 2 + half) ^ (row >> 2) * 5) * 4 + (row & 3);
}
DEVICE float load_shared_float(u32 address) { return __uint_as_float(load_shared(address)); }

// 64 rows of A of one stage, split: a warp's fragments of hi and lo, and the factors of the thread's two rows.
struct SplitRows {
    u32 hi[4][4], lo[4][4];
    float down[2];
};
// `factor(k, i)`: what column k of A, the thread's i-th of a stage (16), is multiplied by first.
template <bool A_MN, class Factor> DEVICE void split_rows(SplitRows &out, u32 a, const Factor &factor) {
    const int lane = threadIdx.x & 31, row = (threadIdx.x / 32 & 3) * 16 + lane / 4, k = lane % 4 * 2;
    float v[4][2][4]; // step, row or row + 8, k: 0, 1, 8, 9
    float most[2] = {0.f, 0.f};
#pragma unroll
    for (int s = 0; s < 4; s++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if (A_MN) {
#pragma unroll
                for (int e = 0; e < 4; e++) v[s][r][e] = load_shared_float(element_address<A_MN>(a, row + 8 * r, 16 * s + k + (e & 1) + 8 * (e >> 1)));
            } else {
#pragma unroll
                for (int e = 0; e < 4; e += 2)
                    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v[s][r][e]), "=f"(v[s][r][e + 1]) : "r"(element_address<A_MN>(a, row + 8 * r, 16 * s + k + 4 * e)) : "memory");
            }
#pragma unroll
            for (int e = 0; e < 4; e++) {
                v[s][r][e] *= factor(16 * s + k + (e & 1) + 8 * (e >> 1), 4 * s + e);
                most[r] = fmaxf(most[r], fabsf(v[s][r][e]));
            }
        }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const Scale scale = scale_of(most_of_row(most[r]));
        const float up = scale.up;
        out.down[r] = scale.down;
#pragma unroll
        for (int s = 0; s < 4; s++)
#pragma unroll
            for (int h = 0; h < 2; h++) split_fp16(v[s][r][2 * h] * up, v[s][r][2 * h + 1] * up, out.hi[s][r + 2 * h], out.lo[s][r + 2 * h]);
    }
}
// The three products of a stage, from zero; they run until wgmma_wait.
template <bool B_MN> DEVICE void start_split(float (&part)[SUMS], const SplitRows &a, u32 b) {
    const u32 low = b + B_BYTES / 2;
    const auto at = [](u32 tile, int s) { return B_MN ? describe_mn_major(tile + s * 2048, K_TILE * 128) : describe_k_major(tile + s * 32); };
    pin(part);
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < 4; s++) {
        wgmma<B_MN>(part, a.lo[s], at(b, s), s > 0, fp16());
        wgmma<B_MN>(part, a.hi[s], at(low, s), true, fp16());
    }
#pragma unroll
    for (int s = 0; s < 4; s++) wgmma<B_MN>(part, a.hi[s], at(b, s), true, fp16());
    wgmma_commit();
}
DEVICE void wait_split(float (&part)[SUMS], SplitRows &a) {
    wgmma_wait<0>();
    pin(part);
#pragma unroll
    for (int s = 0; s < 4; s++) pin(a.hi[s]), pin(a.lo[s]); // they were being read until here
}
DEVICE void end_split(float (&sums)[SUMS], float (&part)[SUMS], SplitRows &a) {
    wait_split(part, a);
#pragma unroll
    for (int j = 0; j < SUMS; j++) sums[j] = fmaf(part[j], a.down[j >> 1 & 1], sums[j]);
}

// What the threads that multiply do beside a product: nothing.
struct Alone {
    static constexpr int PARTS = 0;
    DEVICE void operator()(int) const {}
};

// Multiplies `tiles` stages, at least one, into the sums. In TF32 with A through registers something else can be done beside it: `beside(part)` is called for each of an even number of
// PARTS in turn, in pairs that are spread over the stages, while products run, so it may not touch the sums. There have to be more stages than PARTS. The second warpgroup
// begins half of a pair's time later, so that one multiplies while the other does something else.
template <bool A_MN, bool B_MN, class Factor, class Beside = Alone>
DEVICE void multiply(Sums &sums, Ring &ring, int tiles, const Place &p, const Factor &factor, const Beside &beside = Beside()) {
    static_assert(Beside::PARTS == 0 || (PRECISION == 1 && A_MN && Beside::PARTS % 2 == 0), "only TF32's product from registers takes something beside it");
    const int group = threadIdx.x / 128;
    constexpr u32 A64 = A_MN ? (SPLIT_FP32 ? 64 * 256 : 64 * 128) : 64 * 128; // bytes between 64 rows of A
    if constexpr (PRECISION == 2 || (PRECISION == 1 && !A_MN)) {
        const auto issue = [&](bool add) { // the first product of all overwrites what the sums were
            barrier_wait(ring.full(ring.slot), ring.parity);
            const u32 a = ring.a() + group * M_TILES * A64, b = ring.b();
            wgmma_fence();
#pragma unroll
            for (int s = 0; s < 4; s++)
#pragma unroll
                for (int m = 0; m < M_TILES; m++) {
#if PRECISION == 2
                    const u64 from_a = A_MN ? describe_mn_major(a + m * A64 + s * 2048, A64) : describe_k_major(a + m * A64 + s * 32);
                    const u64 from_b = B_MN ? describe_mn_major(b + s * 2048, K_TILE * 128) : describe_k_major(b + s * 32);
                    wgmma<A_MN, B_MN>(sums.v[m], from_a, from_b, add || s > 0, bf16());
#else
                    wgmma(sums.v[m], describe_k_major(a + m * A64 + s * 32), describe_k_major(b + s * 32), add || s > 0, float());
#endif
                }
            wgmma_commit();
        };
        issue(false);
        for (int tile = 1; tile < tiles; tile++) {
            const int last = ring.slot;
            ring.next();
            issue(true);
            wgmma_wait<1>(); // the stage before is done with once this one's products are all that is under way
            release(ring, last, p);
        }
        wgmma_wait<0>();
#pragma unroll
        for (int m = 0; m < M_TILES; m++) pin(sums.v[m]);
        release(ring, ring.slot, p);
        ring.next();
    } else if constexpr (PRECISION == 1) {
        // A's registers of the next stage are filled while this one's products run.
        struct Fragments {
            u32 v[M_TILES][4][4];
        };
        const auto load = [&](Fragments &to) {
            barrier_wait(ring.full(ring.slot), ring.parity);
            const u32 a = ring.a() + group * M_TILES * A64;
            const int k = threadIdx.x & 3;
#pragma unroll
            for (int m = 0; m < M_TILES; m++)
#pragma unroll
                for (int s = 0; s < 4; s++)
#pragma unroll
                    for (int e = 0; e < 4; e++) to.v[m][s][e] = load_shared(element_address<A_MN>(a + m * A64, row_of_sums(e & 1), 8 * s + k + 4 * (e >> 1)));
        };
        const auto step = [&](Fragments &now, Fragments &next, int tile, int part) {
            const int slot = ring.slot;
            const u32 b = ring.b();
#pragma unroll
            for (int m = 0; m < M_TILES; m++) pin(sums.v[m]);
            wgmma_fence();
#pragma unroll
            for (int s = 0; s < 4; s++)
#pragma unroll
                for (int m = 0; m < M_TILES; m++) wgmma(sums.v[m], now.v[m][s], describe_k_major(b + s * 32), tile > 0 || s > 0, float());
            wgmma_commit();
            ring.next();
            if (tile + 1 < tiles) load(next);
            if (part >= 0) beside(part);
            wgmma_wait<0>();
#pragma unroll
            for (int m = 0; m < M_TILES; m++) {
                pin(sums.v[m]);
#pragma unroll
                for (int s = 0; s < 4; s++) pin(now.v[m][s]); // they were being read until here
            }
            release(ring, slot, p);
        };
        Fragments even, odd;
        load(even);
        int tile = 0;
        if constexpr (Beside::PARTS > 0) {
            const auto until = [&](int end) { // `end` is even, or there are no more
                for (; tile + 2 <= end; tile += 2) step(even, odd, tile, -1), step(odd, even, tile + 1, -1);
            };
            const int later = group * (tiles / Beside::PARTS & ~1);
            until(later);
#pragma unroll
            for (int part = 0; part < Beside::PARTS; part += 2) {
                step(even, odd, tile, part), step(odd, even, tile + 1, part + 1);
                tile += 2;
                until(min(tiles, later + tiles * (part + 2) / Beside::PARTS));
            }
        }
        for (; tile < tiles; tile += 2) {
            step(even, odd, tile, -1);
            if (tile + 1 < tiles) step(odd, even, tile + 1, -1);
        }
    } else {
#pragma unroll
        for (int m = 0; m < M_TILES; m++)
#pragma unroll
            for (int j = 0; j < SUMS; j++) sums.v[m][j] = 0.f;
        float part[SUMS];
        const auto load = [&](SplitRows &to, int m, int tile) {
            split_rows<A_MN>(to, ring.a() + (group * M_TILES + m) * A64, [&](int at, int i) { return factor(tile * K_TILE + at, i); });
        };
        if constexpr (COLS == 64 && M_TILES == 1 && MIN_BLOCKS == 1) { // there are registers to split the next stage while this one's products run
            const auto step = [&](SplitRows &now, SplitRows &next, int tile) {
                const int slot = ring.slot;
                start_split<B_MN>(part, now, ring.b());
                ring.next();
                if (tile + 1 < tiles) {
                    barrier_wait(ring.full(ring.slot), ring.parity);
                    load(next, 0, tile + 1);
                }
                end_split(sums.v[0], part, now);
                release(ring, slot, p);
            };
            SplitRows even, odd;
            barrier_wait(ring.full(ring.slot), ring.parity);
            load(even, 0, 0);
            for (int tile = 0; tile < tiles; tile += 2) {
                step(even, odd, tile);
                if (tile + 1 < tiles) step(odd, even, tile + 1);
            }
        } else {
            for (int tile = 0; tile < tiles; tile++) {
                barrier_wait(ring.full(ring.slot), ring.parity);
#pragma unroll
                for (int m = 0; m < M_TILES; m++) {
                    SplitRows rows;
                    load(rows, m, tile);
                    start_split<B_MN>(part, rows, ring.b());
                    end_split(sums.v[m], part, rows);
                }
                release(ring, ring.slot, p);
                ring.next();
            }
        }
    }
}
// A thread's factors of COUNT / 2 eights of images from `image0` on, of two of each: in the order of its sums. Past the end the last image's.
template <int COUNT> DEVICE void load_factors(float (&to)[COUNT], const float *factors, int image0, int batch) {
#pragma unroll
    for (int j = 0; j < COUNT; j++) to[j] = factors[min(image0 + 8 * (j / 2) + (int)(threadIdx.x & 3) * 2 + j % 2, batch - 1)];
}
struct One {
    DEVICE float operator()(int, int) const { return 1.f; }
};

// The range of K tiles of a split, of PARTS; the host sees to it that none is empty.
template <int PARTS = SPLITS> DEVICE void split_tiles(int k, u32 split, int &begin, int &end) {
    const int tiles = (k + K_TILE - 1) / K_TILE, each = (tiles + PARTS - 1) / PARTS;
    begin = min((int)split * each, tiles);
    end = min(begin + each, tiles);
}

// Hands each sum to `use(m, j, s)`: 64 rows m of the warpgroup, 8 columns j, four sums as a thread of wgmma holds them, in ROUNDS equal parts of the columns with
// `before(round)` and `after(round)` around each and all threads that multiply in step. With SPLITS each block of the cluster gets an equal share of the
// columns, summed over the splits in their order: every other block sends it theirs. The threads that multiply call it, and those that load
// finish_beside(), because the whole cluster takes part; where sums land there is room for results when `before(0)` is called.
constexpr int SHARE_COLS = COLS / SPLITS; // columns that a block finishes
struct Nothing {
    DEVICE void operator()(int) const {}
};
constexpr int SHARE = SHARE_COLS / 8; // and eights of them
typedef float4 Totals[M_TILES][SHARE];
// The sums of all splits.
DEVICE void add_up(Totals &total, const Sums &sums, const Ring &ring, const Place &p) {
    static_assert(COLS % (8 * SPLITS) == 0, "every split finishes as many columns");
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
#pragma unroll
        for (int j = 0; j < SHARE; j++) total[m][j] = make_float4(sums.v[m][4 * j], sums.v[m][4 * j + 1], sums.v[m][4 * j + 2], sums.v[m][4 * j + 3]);
    if constexpr (SPLITS > 1) {
        cluster_wait(); // everyone can be sent to
        const u32 mine = ring.results() + threadIdx.x * 16;
#pragma unroll
        for (int to = 0; to < SPLITS; to++) {
            const u32 there = cluster_address(mine + ((int)p.split - (p.split > to)) * PART_BYTES, p.rank - p.split + to);
#pragma unroll
            for (int m = 0; m < M_TILES; m++)
#pragma unroll
                for (int j = 0; j < SHARE; j++) {
                    const float *v = sums.v[m] + 4 * (to * SHARE + j);
                    if (to == (int)p.split) total[m][j] = make_float4(v[0], v[1], v[2], v[3]);
                    else cluster_store(there + (m * SHARE + j) * MULTIPLIERS * 16, v[0], v[1], v[2], v[3]);
                }
        }
        cluster_arrive();
        cluster_wait();
#pragma unroll
        for (int m = 0; m < M_TILES; m++)
#pragma unroll
            for (int j = 0; j < SHARE; j++) {
                const float4 own = total[m][j];
                float4 t = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
                for (int from = 0; from < SPLITS; from++) {
                    float4 v = own;
                    if (from != (int)p.split)
                        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                                     : "r"(mine + (from - (from > (int)p.split)) * PART_BYTES + (m * SHARE + j) * MULTIPLIERS * 16) : "memory");
                    t.x += v.x, t.y += v.y, t.z += v.z, t.w += v.w;
                }
                total[m][j] = t;
            }
    }
}
template <int ROUNDS = 1, class Before, class Use, class After = Nothing>
DEVICE void finish(const Sums &sums, const Ring &ring, const Place &p, const Before &before, const Use &use, const After &after = Nothing()) {
    constexpr int EACH = SHARE / ROUNDS;
    static_assert(SHARE % ROUNDS == 0, "every round as many");
    Totals total;
    add_up(total, sums, ring, p);
#pragma unroll
    for (int round = 0; round < ROUNDS; round++) {
        barrier_among(1, MULTIPLIERS); // everyone has read what results are now put over
        before(round);
#pragma unroll
        for (int m = 0; m < M_TILES; m++)
#pragma unroll
            for (int j = round * EACH; j < (round + 1) * EACH; j++) use(m, j, total[m][j]);
        barrier_among(1, MULTIPLIERS);
        after(round);
    }
    if (SPLITS > 1) cluster_arrive();
}
DEVICE void finish_beside() {
    if (SPLITS > 1) {
        cluster_wait();
        cluster_arrive();
        cluster_wait();
        cluster_arrive();
    }
}

// Which tile of A's rows and of the batch a cluster has. Groups of GROUP batch tiles go together, so that weights and activations of what runs at once
// stay in L2.
struct TilePlace {
    int a, b;
};
DEVICE TilePlace tile_place(u32 index, u32 tiles_a, u32 tiles_b) {
    constexpr u32 GROUP = 16;
    const u32 group = index / (GROUP * tiles_a), first = group * GROUP, width = min(tiles_b - first, GROUP), within = index - first * tiles_a;
    return TilePlace{(int)(within / width), (int)(first + within % width)};
}
