// dx = [dg | du] Wf        dz (B, H), x (B, D), Wf (2H, D), dx (B, D)
//      [g | u] = x Wf^T, computed again, or read back when the forward saved them (SAVED_GATES 1)
//      du = dz silu(g)     dg = dz u sigmoid(g) (1 + g (1 - sigmoid(g)))
//
// Reads     x, Wf twice, dz (or saved gates, Wf once, dz)
// Writes    [dg | du] (B, 2H), which the weight gradient needs anyway and which stays in L2 for the second phase; dx
// Launches  1. FLOP: 8 B D H when the gates are computed again, 4 B D H when they are read.
// Wins      small batches (one launch for three kernels) and wherever memory is short: g and u are never kept.
// Loses     for large D when the gates are computed again: twice the arithmetic. Save them instead.
//
// The idea: every tile of dx needs all of [dg | du], so a kernel that fused naively would compute the gates again for each tile of dx,
// D / TILE_N times over. Here one launch has two phases. Phase 1 computes [dg | du] tile by tile; phase 2 is a plain product. Blocks take
// work in order from a counter: all of phase 1 first, then phase 2. A tile of phase 2 waits until its row block of [dg | du] is complete
// (`ready`). Nobody waits for ever, whatever the grid: work is only held by blocks that run, it is handed out in order, phase 1 never waits
// for phase 2, and the splits of a tile, which wait for each other, are handed out one after the other. Only one rule: at least as many
// blocks must run at once as a tile has splits.
//
// Grid: any number of blocks from max(K_SPLITS, DX_SPLITS) up; one an SM when there are no more pieces of work than SMs, else as many as fit.
// `state`, u32s that are zero before the first launch and that each launch leaves zero (so a graph may replay it):
//   [0] next piece of work   [1] blocks that have left   [2 ..] ready, one a row block (ceil(B / TILE_M)),
//   then one arrival counter a phase-1 tile (tiles_m * ceil(2 H / TILE_N)), then one a phase-2 tile (tiles_m * ceil(D / DX_TILE_N)).
// With splits: `workspace` holds TILE_M * TILE_N * K_SPLITS floats a phase-1 tile, then TILE_M * DX_TILE_N * DX_SPLITS a phase-2 tile.
#include "product.cuh"

#ifndef TILE_M
#define TILE_M 128
#define TILE_N 128     // phase 1: columns of [g | u]
#define WARP_ROWS 2
#define WARP_COLS 2
#define K_SPLITS 1     // phase 1: splits of D
#define DX_TILE_N 128  // phase 2: columns of dx
#define DX_SPLITS 1    // phase 2: splits of 2H
#define TILE_STAGES 3
#define MIN_BLOCKS 1
#endif
#ifndef SAVED_GATES
#define SAVED_GATES 0
#endif

using Gates = Engine<T, TILE_M, TILE_N, WARP_ROWS, WARP_COLS, true, true>;
using Dx = Engine<T, TILE_M, DX_TILE_N, WARP_ROWS, WARP_COLS, true, false>;

// Two neighbours of [dg | du] from g, u and dz.
DEVICE void store_gate_gradient(T *dgates, const T *dz, int row, int unit, int hidden, float2 g, float2 u) {
    const int count = hidden - unit;
    const float2 d = load_pair(dz + offset(row, hidden) + unit, count);
    float dg[2], du[2];
    gate_backward(g.x, u.x, d.x, dg[0], du[0]);
    gate_backward(g.y, u.y, d.y, dg[1], du[1]);
    T *at = dgates + offset(row, 2 * hidden) + unit;
    store_pair(at, count, dg[0], dg[1]);
    store_pair(at + hidden, count, du[0], du[1]);
}

extern "C" __global__ void __launch_bounds__(Gates::THREADS, MIN_BLOCKS)
    swiglu_fused_backward_dx(const T *x, const T *wf, const T *gates, const T *dz, T *dgates, T *dx, float *workspace, u32 *state, int batch, int inputs, int hidden) {
    extern __shared__ __align__(1024) u8 stages[];
    __shared__ u32 taken;
    constexpr int SPLITS_1 = SAVED_GATES ? 1 : K_SPLITS;
    const u32 smem = shared_address(stages);
    const u32 tiles_m = (batch + TILE_M - 1) / TILE_M, tiles_1 = (2 * hidden + TILE_N - 1) / TILE_N, tiles_2 = (inputs + DX_TILE_N - 1) / DX_TILE_N;
    const u32 work_1 = tiles_m * tiles_1 * SPLITS_1, work = work_1 + tiles_m * tiles_2 * DX_SPLITS;
    u32 *ready = state + 2;

    // Which piece of work `taken` is. Asked again after a product rather than kept in registers during it.
    struct Piece {
        int split, tile, block, row0, column; // column: of tiles
    };
    const auto piece = [&](u32 first, int splits, u32 tiles_n) {
        const u32 at = *(volatile u32 *)&taken - first, tile = at / splits, block = tile / tiles_n;
        return Piece{(int)(at % splits), (int)tile, (int)block, (int)block * TILE_M, (int)(tile % tiles_n)};
    };

    for (;;) {
        __syncthreads(); // everyone has read the last `taken`
        if (threadIdx.x == 0) taken = atomicAdd(state, 1u);
        __syncthreads();
        const u32 item = taken;
        if (item >= work) break;
        if (item < work_1) { // phase 1: a tile of [dg | du], row blocks in order so that the first are ready soon
            const Piece in = piece(0, SPLITS_1, tiles_1);
#if SAVED_GATES
            const int row0 = in.row0, unit0 = in.column * (TILE_N / 2);
            constexpr int N = ALIGNED ? Vec<T>::N : 2, IN_ROW = TILE_N / 2 / N; // 16 bytes a thread where rows allow it
#pragma unroll 4
            for (int at = threadIdx.x; at < TILE_M * IN_ROW; at += Gates::THREADS) {
                const int row = row0 + at / IN_ROW, unit = unit0 + at % IN_ROW * N;
                if (row >= batch || unit >= hidden) continue;
                const T *saved = gates + offset(row, 2 * hidden) + unit;
#if ALIGNED
                float g[N], u[N], d[N], dg[N], du[N];
                const uint4 gv = load16(saved), uv = load16(saved + hidden), dv = load16(dz + offset(row, hidden) + unit);
                unpack16(gv, g, T()), unpack16(uv, u, T()), unpack16(dv, d, T());
#pragma unroll
                for (int i = 0; i < N; i++) gate_backward(g[i], u[i], d[i], dg[i], du[i]);
                T *out = dgates + offset(row, 2 * hidden) + unit;
                *(uint4 *)out = pack16(dg, T());
                *(uint4 *)(out + hidden) = pack16(du, T());
#else
                store_gate_gradient(dgates, dz, row, unit, hidden, load_pair(saved, hidden - unit), load_pair(saved + hidden, hidden - unit));
#endif
            }
#else
            // [g | u] = x Wf^T: (B, D) @ (D, 2H) -> (B, 2H)
            Accumulators<Gates> acc;
            int k_begin, k_end;
            split_range<T, SPLITS_1>(inputs, in.split, k_begin, k_end);
            multiply_tile<T, Gates, TILE_STAGES>(acc, smem, KMajor<T>{x, inputs, in.row0, batch}, GateUp<T>{wf, inputs, in.column * (TILE_N / 2), hidden}, k_begin, k_end);
            const Piece out = piece(0, SPLITS_1, tiles_1);
            u32 *arrived = ready + tiles_m + out.tile;
            finish_tile<Gates, SPLITS_1>(acc, workspace + (u64)out.tile * (TILE_M * TILE_N * SPLITS_1), arrived, out.split, [&](int i, int j, float2 g, float2 u) {
                const int row = out.row0 + Gates::row(i), packed = Gates::col(j), unit = out.column * (TILE_N / 2) + (packed >> 4) * 8 + (packed & 7);
                if (row < batch && unit < hidden) store_gate_gradient(dgates, dz, row, unit, hidden, g, u);
            });
#endif
            __syncthreads();
            if (threadIdx.x == 0) {
                __threadfence(); // what the block wrote is visible to the chip before it reports it
                atomicAdd(ready + piece(0, SPLITS_1, tiles_1).block, 1u);
            }
        } else { // phase 2: dx = [dg | du] Wf: (B, 2H) @ (2H, D) -> (B, D)
            const Piece in = piece(work_1, DX_SPLITS, tiles_2);
            if (threadIdx.x == 0) {
                u32 done;
                do {
                    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(done) : "l"(ready + in.block) : "memory");
                } while (done < tiles_1 * SPLITS_1);
            }
            __syncthreads();
            Accumulators<Dx> acc;
            int k_begin, k_end;
            split_range<T, DX_SPLITS>(2 * hidden, in.split, k_begin, k_end);
            multiply_tile<T, Dx, TILE_STAGES>(acc, smem, KMajor<T>{dgates, 2 * hidden, in.row0, batch}, MnMajor<T>{wf, inputs, in.column * DX_TILE_N, inputs}, k_begin, k_end);
            const Piece out = piece(work_1, DX_SPLITS, tiles_2);
            u32 *arrived = ready + tiles_m + tiles_m * tiles_1 + out.tile;
            float *sums = workspace + (SPLITS_1 > 1 ? (u64)tiles_m * tiles_1 * (TILE_M * TILE_N * SPLITS_1) : 0) + (u64)out.tile * (TILE_M * DX_TILE_N * DX_SPLITS);
            finish_tile<Dx, DX_SPLITS>(acc, sums, arrived, out.split, [&](int i, int j, float2 first, float2 second) {
                const int col0 = out.column * DX_TILE_N, row = out.row0 + Dx::row(i), a = col0 + Dx::col(j), b = col0 + Dx::col(j + 1);
                if (row >= batch) return;
                store_pair(dx + offset(row, inputs) + a, inputs - a, first.x, first.y);
                store_pair(dx + offset(row, inputs) + b, inputs - b, second.x, second.y);
            });
        }
    }
    // The last block to leave puts the state back to zero; nobody reads it any more.
    __syncthreads(); // everyone has read the last `taken`
    if (threadIdx.x == 0) {
        __threadfence();
        taken = atomicAdd(state + 1, 1u);
        __threadfence();
    }
    __syncthreads();
    if (taken == gridDim.x - 1) {
        for (u32 i = threadIdx.x; i < tiles_m + 2; i += Gates::THREADS) state[i] = 0;
    }
}
