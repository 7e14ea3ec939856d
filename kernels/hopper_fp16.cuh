// fp16 as a place for fp32 numbers whose size is known, and for bytes.
#pragma once
#include "common.cuh"

// Two fp16 in one register, the first in the low half.
DEVICE u32 pack_fp16(float first, float second) {
    u32 out;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(second), "f"(first));
    return out;
}
DEVICE void unpack_fp16(u32 v, float &first, float &second) {
    asm("{\n.reg .b16 a, b;\nmov.b32 {a, b}, %2;\ncvt.f32.f16 %0, a;\ncvt.f32.f16 %1, b;\n}" : "=f"(first), "=f"(second) : "r"(v));
}

// Two numbers as hi, what is near them, and lo, what is left.
DEVICE void split_fp16(float first, float second, u32 &hi, u32 &lo) {
    float a, b;
    hi = pack_fp16(first, second);
    unpack_fp16(hi, a, b);
    lo = pack_fp16(first - a, second - b);
}

// The power of two that brings numbers up to `largest` into fp16 (it becomes 2^14 to 2^15; what is below 2^-112 stays small), and the one back.
struct Scale {
    float up, down;
};
DEVICE Scale scale_of(float largest) {
    const u32 exponent = max(__float_as_uint(largest) >> 23, 15u);
    return Scale{__uint_as_float((268u - exponent) << 23), __uint_as_float((exponent - 14u) << 23)};
}
// The largest of the four threads that share a fragment's rows.
DEVICE float most_of_row(float v) {
    v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
    return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}

// Bytes as fp16, exactly, two a register: 1024 + p is 0x6400 | p. The first two of four, the last two; of each half of a register the low byte or the high one.
DEVICE u32 fp16_of_bytes(u32 v, u32 which) {
    u32 out;
    asm("{\n.reg .b32 above;\nprmt.b32 above, %1, 0x64646464, %2;\nsub.f16x2 %0, above, %3;\n}" : "=r"(out) : "r"(v), "r"(which), "r"(0x64006400u));
    return out;
}
DEVICE u32 bytes_low(u32 v) { return fp16_of_bytes(v, 0x4140u); }
DEVICE u32 bytes_high(u32 v) { return fp16_of_bytes(v, 0x4342u); }
DEVICE u32 bytes_of_halves(u32 v, int high) { return fp16_of_bytes(v, high ? 0x4341u : 0x4240u); }

// sums += A B, 16 x 16 by 16 x 8: rows lane / 4 + 8 h, columns 2 (lane % 4) + e.
DEVICE void mma_fp16(float (&sums)[2][2], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sums[0][0]), "+f"(sums[0][1]), "+f"(sums[1][0]), "+f"(sums[1][1]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
