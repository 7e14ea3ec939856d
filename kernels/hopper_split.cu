// x (rows, columns) fp32 -> hi, lo (rows, columns) fp16 and down (rows), x = (hi + lo) * down: activations for fp32-emulated; see hopper_split.cuh.
//
// Reads     x, once where a row has at most 4096 columns; of longer ones the rest twice
// Writes    planes: hi, then lo, each (rows, columns); down
// Launches  1, a block of 256 threads a row
#include "hopper_split.cuh"

extern "C" __global__ void __launch_bounds__(256) hopper_split(const float *x, u16 *planes, float *down, int rows, int columns) {
    __shared__ float most[8];
    wait_for_last();
    let_next_start(); // it asks for its weights meanwhile
    const int row = blockIdx.x;
    const auto write = [](int, float4) {};
    const auto load = [&](int i) { return *(const float4 *)(x + offset(row, columns) + i); };
    split_row<256, 4>(load, write, planes + offset(row, columns), planes + offset(row + rows, columns), down + row, 0, columns, 1, most);
}
