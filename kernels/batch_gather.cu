// x[b] = images[order[first + b]] * scale + shift        images (N, pixels) u8, order (N) u32, x (batch, pixels)
// labels_out[b] = labels[order[first + b]]
//
// With scale = 1 / (255 * 0.3081) and shift = -0.1307 / 0.3081 this is (pixel / 255 - 0.1307) / 0.3081.
//
// Reads     batch images, by index: the whole data set stays on the device and shuffling it means shuffling `order`
// Writes    x, labels_out
// Launches  1. Bytes: batch * pixels * (1 + sizeof(element)).
// Wins      always, over a copy from the host; a graph can replay it, because where the batch starts is read from device memory.
// Loses     when the data set does not fit on the device.
//
// `step` (may be null: 0) counts batches, so first = *step * batch; the head moves it on (head.cu).
// Grid: ceil(batch * ceil(pixels / 4) / 256) blocks of 256 threads, four pixels a thread.
#include "common.cuh"

constexpr int THREADS = 256;

DEVICE void store4(float *p, const float (&v)[4]) { *(float4 *)p = make_float4(v[0], v[1], v[2], v[3]); }
DEVICE void store4(bf16 *p, const float (&v)[4]) { *(uint2 *)p = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])); }

extern "C" __global__ void __launch_bounds__(THREADS)
    batch_gather(const u8 *images, const u8 *labels, const u32 *order, const u32 *step, T *x, u8 *labels_out, int batch, int pixels, float scale, float shift) {
    const int quads = (pixels + 3) / 4;
    const u32 at = blockIdx.x * THREADS + threadIdx.x;
    const int row = at / quads, pixel = at % quads * 4;
    if (row >= batch) return;
    const u32 image = order[(step ? *step : 0) * batch + row];
    if (pixel == 0) labels_out[row] = labels[image];
    const u8 *src = images + (u64)image * pixels + pixel;
    T *dst = x + (u64)row * pixels + pixel;
    if (pixels % 4 == 0) {
        const u32 p = *(const u32 *)src;
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = fmaf((float)((p >> (8 * i)) & 255), scale, shift);
        store4(dst, v);
    } else {
        for (int i = 0; i < min(4, pixels - pixel); i++) dst[i] = from_float<T>(fmaf((float)src[i], scale, shift));
    }
}
