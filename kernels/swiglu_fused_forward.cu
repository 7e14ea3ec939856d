// z = silu(x Wg^T) * (x Wu^T)        x (B, D), Wf = [Wg; Wu] (2H, D), z (B, H)
//
// Reads     x and Wf, through L2 once for each tile that needs them; from memory about once
// Writes    z; and, when `gates` is given, [g | u] (B, 2H) for a backward that will not recompute them
// Launches  1. Bytes: (B D + 2 H D + B H) elements, and 2 B H more with gates. Without fusion: 6 B H more and a second launch.
// Wins      where the batch is small: a launch costs as much as the product, and the gate's traffic is not hidden by arithmetic.
// Loses     where B, D, H are large and the library's product runs on instructions that this portable kernel does not use
//           (Hopper's wgmma makes it 1.7 to 2 times as fast): then a product and a gate kernel apart are faster.
//
// The idea: lay the rows of Wg and Wu in turns of 8 in the operand tile (GateUp in tile.cuh). Then g and u of one hidden unit are
// accumulators of one thread, and the gate is applied in registers.
//
// Grid: ceil(B / TILE_M) * ceil(2 H / TILE_N) * K_SPLITS blocks of WARP_ROWS * WARP_COLS * WARP_SLICES * 32 threads, in one dimension. Tiles that share
// weights are neighbours, so that weights come from memory once. With K_SPLITS > 1: `workspace` holds TILE_M * TILE_N * K_SPLITS floats
// a tile and `counters` one zeroed u32 a tile, which the kernel leaves zero; and the whole grid must fit on the chip at once (blocks an SM
// holds times SMs), because blocks of a tile wait for each other. Splitting only pays when it does.
#include "product.cuh"

#ifndef TILE_M
#define TILE_M 128    // rows of x
#define TILE_N 128    // rows of Wf: half gate, half up, so half as many columns of z
#define WARP_ROWS 2
#define WARP_COLS 2
#define TILE_STAGES 3
#define K_SPLITS 1
#define MIN_BLOCKS 1  // blocks an SM should hold: bounds the registers of a thread
#endif

using Forward = Engine<T, TILE_M, TILE_N, WARP_ROWS, WARP_COLS, true, true>;

extern "C" __global__ void __launch_bounds__(Forward::THREADS, MIN_BLOCKS)
    swiglu_fused_forward(const T *x, const T *wf, T *z, T *gates, float *workspace, u32 *counters, int batch, int inputs, int hidden) {
    extern __shared__ __align__(1024) u8 stages[];
    struct Place {
        int split, tile, row0, unit0;
    };
    const auto place = [&] {
        const u32 block = block_index(), tiles_m = (batch + TILE_M - 1) / TILE_M, tile = block / K_SPLITS;
        return Place{(int)(block % K_SPLITS), (int)tile, (int)(tile % tiles_m * TILE_M), (int)(tile / tiles_m * (TILE_N / 2))};
    };

    // [g | u] = x Wf^T: (B, D) @ (D, 2H) -> (B, 2H)
    Accumulators<Forward> acc;
    const Place at = place();
    int k_begin, k_end;
    split_range<T, K_SPLITS>(inputs, at.split, k_begin, k_end);
    multiply_tile<T, Forward, TILE_STAGES>(acc, shared_address(stages), KMajor<T>{x, inputs, at.row0, batch}, GateUp<T>{wf, inputs, at.unit0, hidden}, k_begin, k_end);

    const Place out = place();
    finish_tile<Forward, K_SPLITS>(acc, workspace + (u64)out.tile * (TILE_M * TILE_N * K_SPLITS), counters + out.tile, out.split, [&](int i, int j, float2 g, float2 u) {
        const int row = out.row0 + Forward::row(i), packed = Forward::col(j), unit = out.unit0 + (packed >> 4) * 8 + (packed & 7), count = hidden - unit;
        if (row >= batch) return;
        store_pair(z + offset(row, hidden) + unit, count, gate_forward(g.x, u.x), gate_forward(g.y, u.y));
        if (gates) {
            T *saved = gates + offset(row, 2 * hidden) + unit;
            store_pair(saved, count, g.x, g.y);
            store_pair(saved + hidden, count, u.x, u.y);
        }
    });
}
