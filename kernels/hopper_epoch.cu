// An epoch's images, normalised and in its order, as the products of the stem read them: row i is images[order[i]] * scale + shift
//   PRECISION 2   x (N, pixels) bf16
//   PRECISION 1   x (N, pixels) fp32, and x^T (pixels, pitch), because wgmma reads TF32 along K only and dW sums over images; each batch
//                 begins at a whole 16 bytes of it, where alone a copy may begin, and the columns before the next are left alone
//   PRECISION 3   x = (hi + lo) * down as fp16, hi (N, pixels) then lo; one `down` for all, because pixels have one range: factors[0 .. factor_count]
//   AS_BYTES 1    the bytes as they are, whatever the precision: `x` is (N, pixels) u8 (hopper_stem_step.cu)
// and labels_out[i] = labels[order[i]].
//
// Reads     each image once, by index
// Writes    2, 8 or 4 bytes a pixel, or 1
// Launches  1 an epoch, in place of a gather (and a transposition, or a split) a step
// Wins      by those launches: about 2 us a step each, for 20 to 100 us an epoch
// Loses     memory: 94, 376 or 188 MB for 60,000 images, or 47
//
// A block of 256 threads takes 32 images by 32 pixels: grid ceil(N / 32) * ceil(pixels / 32). `pixels` is a multiple of 4; `largest` bounds |x|.
#include "hopper_product.cuh"

#ifndef AS_BYTES
#define AS_BYTES 0
#endif

extern "C" __global__ void __launch_bounds__(256) hopper_epoch(const u8 *images, const u8 *labels, const u32 *order, T *x, float *x_t, u16 *planes, float *factors, u8 *labels_out, int count, int pixels,
                                                               int batch, int pitch, int factor_count, float scale, float shift, float largest) {
#if PRECISION == 1 && !AS_BYTES
    __shared__ float tile[32][33];
#endif
    const int across = (pixels + 31) / 32, row0 = blockIdx.x / across * 32, col0 = blockIdx.x % across * 32;
    const int within = threadIdx.x / 8, row = row0 + within, quad = threadIdx.x % 8 * 4, col = col0 + quad;
    const Scale by = scale_of(largest);
    if (PRECISION == 3 && !AS_BYTES)
        for (int i = blockIdx.x * 256 + threadIdx.x; i < factor_count; i += gridDim.x * 256) factors[i] = by.down;
    if (row < count && col < pixels) {
        const u32 image = order[row], p = *(const u32 *)(images + offset(image, pixels) + col);
        if (col == 0) labels_out[row] = labels[image];
        const u64 to = offset(row, pixels) + col;
#if AS_BYTES
        *(u32 *)((u8 *)x + to) = p;
#else
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = fmaf((float)((p >> (8 * i)) & 255), scale, shift);
#if PRECISION == 2
        *(uint2 *)(x + to) = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
#elif PRECISION == 3
        u16 *lo = planes + offset(count, pixels);
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
            u32 hi, low;
            split_fp16(v[i] * by.up, v[i + 1] * by.up, hi, low);
            *(u32 *)(planes + to + i) = hi;
            *(u32 *)(lo + to + i) = low;
        }
#else
        *(uint4 *)(x + to) = pack16(v, 0.f);
#pragma unroll
        for (int i = 0; i < 4; i++) tile[within][quad + i] = v[i];
#endif
#endif
    }
#if PRECISION == 1 && !AS_BYTES
    if (!x_t) return; // nobody reads it
    __syncthreads();
    const int lane = threadIdx.x & 31, to = (row0 + lane) / batch * ((batch + 3) & ~3) + (row0 + lane) % batch;
#pragma unroll
    for (int i = threadIdx.x / 32; i < 32; i += 8)
        if (col0 + i < pixels && row0 + lane < count) x_t[offset(col0 + i, pitch) + to] = tile[lane][i];
#endif
}
