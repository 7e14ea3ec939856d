// What every kernel here shares: the element type of the precision asked for, conversions, 16-byte moves, the gate's arithmetic.
//
// No header is included, on purpose: NVRTC compiles a file in tens of milliseconds without them and in seconds with them.
// Compile-time defines read here:
//   PRECISION  0 fp32: IEEE fp32 on the ordinary cores   1 tf32: fp32 in memory, TF32 tensor cores   2 bf16 in memory, bf16 tensor cores
//              3 fp32-emulated: fp32 in memory, three TF32 products for one of fp32 (engine_mma.cuh)
//   ALIGNED    1: every row starts on 16 bytes (each row length is a multiple of 16 bytes)    0: any length
#pragma once

#ifndef PRECISION
#define PRECISION 0
#endif
#ifndef ALIGNED
#define ALIGNED 1
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE __device__ __forceinline__

struct bf16 {
    u16 bits;
};

// T is what activations (and the weights that a product reads) are kept in.
#if PRECISION == 2
typedef bf16 T;
#else
typedef float T;
#endif

// How many elements make 16 bytes.
template <class E> struct Vec { static constexpr int N = 16 / sizeof(E); };

DEVICE float to_float(float v) { return v; }
DEVICE float to_float(bf16 v) { return __uint_as_float((u32)v.bits << 16); }

template <class E> DEVICE E from_float(float v);
template <> DEVICE float from_float<float>(float v) { return v; }
template <> DEVICE bf16 from_float<bf16>(float v) {
    bf16 out;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
    return out;
}

// Two bf16 in one register, the first in the low half: the order of memory.
DEVICE u32 pack_bf16(float first, float second) {
    u32 out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(second), "f"(first));
    return out;
}

// 16 bytes to and from floats. `cg` loads go to L2: for what another block may have written during this launch.
DEVICE uint4 load16(const void *p) { return *(const uint4 *)p; }
DEVICE uint4 load16_cg(const void *p) {
    uint4 v;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
    return v;
}
DEVICE void unpack16(uint4 v, float (&out)[4], float) {
    out[0] = __uint_as_float(v.x), out[1] = __uint_as_float(v.y), out[2] = __uint_as_float(v.z), out[3] = __uint_as_float(v.w);
}
DEVICE void unpack16(uint4 v, float (&out)[8], bf16) {
    const u32 w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) out[2 * i] = __uint_as_float(w[i] << 16), out[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
}
DEVICE uint4 pack16(const float (&v)[4], float) {
    return make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3]));
}
DEVICE uint4 pack16(const float (&v)[8], bf16) {
    return make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}

// Two neighbours of a row. `count` says how many of them exist (0, 1 or 2); with ALIGNED rows it is 0 or 2.
DEVICE float2 load_pair(const float *p, int count) {
    if (ALIGNED) return count > 0 ? *(const float2 *)p : make_float2(0.f, 0.f);
    return make_float2(count > 0 ? p[0] : 0.f, count > 1 ? p[1] : 0.f);
}
DEVICE float2 load_pair(const bf16 *p, int count) {
    if (ALIGNED) {
        const u32 v = count > 0 ? *(const u32 *)p : 0u;
        return make_float2(__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u));
    }
    return make_float2(count > 0 ? to_float(p[0]) : 0.f, count > 1 ? to_float(p[1]) : 0.f);
}
DEVICE void store_pair(float *p, int count, float a, float b) {
    if (ALIGNED) {
        if (count > 0) *(float2 *)p = make_float2(a, b);
    } else {
        if (count > 0) p[0] = a;
        if (count > 1) p[1] = b;
    }
}
DEVICE void store_pair(bf16 *p, int count, float a, float b) {
    if (ALIGNED) {
        if (count > 0) *(u32 *)p = pack_bf16(a, b);
    } else {
        if (count > 0) p[0] = from_float<bf16>(a);
        if (count > 1) p[1] = from_float<bf16>(b);
    }
}

// Four neighbours of a row, as load_pair.
DEVICE void load_quad(const float *p, int count, float (&v)[4]) {
    if (ALIGNED) {
        unpack16(count > 0 ? load16(p) : make_uint4(0u, 0u, 0u, 0u), v, 0.f);
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = i < count ? p[i] : 0.f;
    }
}
DEVICE void load_quad(const bf16 *p, int count, float (&v)[4]) {
    if (ALIGNED) {
        const uint2 w = count > 0 ? *(const uint2 *)p : make_uint2(0u, 0u);
        v[0] = __uint_as_float(w.x << 16), v[1] = __uint_as_float(w.x & 0xffff0000u);
        v[2] = __uint_as_float(w.y << 16), v[3] = __uint_as_float(w.y & 0xffff0000u);
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = i < count ? to_float(p[i]) : 0.f;
    }
}

// e^x = 2^(x log2 e), by the special-function unit: about 1e-7 relative error for small x.
DEVICE float exponential(float x) {
    float e;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * 1.4426950408889634f));
    return e;
}
// sigmoid(g) = 1 / (1 + e^-g): two special-function instructions, about 1e-7 relative error. For g far below zero the
// power is infinite and the reciprocal 0, which is right.
DEVICE float sigmoid(float g) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1.f + exponential(-g)));
    return r;
}
DEVICE float gate_forward(float g, float u) { return g * sigmoid(g) * u; }

// dz -> (dg, du). The derivative of silu is sigmoid(g) * (1 + g * (1 - sigmoid(g))).
DEVICE void gate_backward(float g, float u, float dz, float &dg, float &du) {
    const float s = sigmoid(g);
    du = dz * g * s;
    dg = dz * u * s * (1.f + g * (1.f - s));
}

// Sums over a warp, in one fixed order.
DEVICE float warp_sum(float v) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
}
DEVICE float warp_max(float v) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, d));
    return v;
}
// Sum over a block of THREADS threads; every thread gets it. `scratch` holds one float a warp.
template <int THREADS> DEVICE float block_sum(float v, float *scratch) {
    v = warp_sum(v);
    __syncthreads(); // scratch may still be read by an earlier call
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = v;
    __syncthreads();
    float total = 0.f;
#pragma unroll
    for (int w = 0; w < THREADS / 32; w++) total += scratch[w];
    return total;
}
