//! The gate and its derivative, on vectors of the CPU: what every implementation applies between its products.

use crate::device::cpu::simd::{Simd, sigmoid};

/// z = silu(g) * u
///
/// # Safety
/// The instruction set of `S` is there.
#[inline(always)]
pub unsafe fn forward<S: Simd>(g: S::V, u: S::V) -> S::V {
    // SAFETY: the caller vouches for the instruction set.
    unsafe { S::mul(S::mul(g, sigmoid::<S>(g)), u) }
}

/// (dg, du) with du = dz * silu(g) and dg = dz * u * sigmoid(g) * (1 + g * (1 - sigmoid(g)))
///
/// # Safety
/// The instruction set of `S` is there.
#[inline(always)]
pub unsafe fn backward<S: Simd>(g: S::V, u: S::V, dz: S::V) -> (S::V, S::V) {
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        let one = S::splat(1.0);
        let s = sigmoid::<S>(g);
        let derivative = S::mul(s, S::fma(g, S::sub(one, s), one));
        (S::mul(S::mul(dz, u), derivative), S::mul(dz, S::mul(g, s)))
    }
}
