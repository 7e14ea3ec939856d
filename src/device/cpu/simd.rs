//! Vectors of f32, one trait over three instruction sets. A kernel is written once, generic over [`Simd`] and always
//! inlined; `simd_dispatch!` makes one copy for each instruction set and chooses at run time.

use crate::{Error, Result};

/// The instruction set that kernels run with, found once when a device is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// 16 lanes.
    Avx512,
    /// 8 lanes with fused multiply-add.
    Avx2,
    /// 8 lanes of plain Rust, for the compiler to vectorise as it can.
    Portable,
}

impl Isa {
    /// The widest one that this processor has, or the one that the environment variable `MNIST_SWIGLU_ISA` names.
    ///
    /// # Errors
    /// When the variable names none, or one that this processor lacks.
    pub fn detect() -> Result<Isa> {
        let best = Self::widest();
        let Some(asked) = std::env::var_os("MNIST_SWIGLU_ISA") else { return Ok(best) };
        match asked.to_str() {
            Some("portable") => Ok(Isa::Portable),
            Some("avx2") if best != Isa::Portable => Ok(Isa::Avx2),
            Some("avx512") if best == Isa::Avx512 => Ok(Isa::Avx512),
            _ => Err(Error::usage(format!(
                "MNIST_SWIGLU_ISA={} is not an instruction set of this processor",
                asked.display()
            ))
            .hint(format!("unset it to use the widest ({}), or set it to portable, avx2 or avx512", best.name()))),
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn widest() -> Isa {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            Isa::Avx512
        } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            Isa::Avx2
        } else {
            Isa::Portable
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn widest() -> Isa {
        Isa::Portable
    }

    /// Every instruction set that this processor has, the narrowest first.
    pub fn available() -> Vec<Isa> {
        match Self::widest() {
            Isa::Portable => vec![Isa::Portable],
            Isa::Avx2 => vec![Isa::Portable, Isa::Avx2],
            Isa::Avx512 => vec![Isa::Portable, Isa::Avx2, Isa::Avx512],
        }
    }

    /// Lanes that a packed panel of kernels is wide: two vectors.
    pub fn panel(self) -> usize {
        match self {
            Isa::Avx512 => 32,
            Isa::Avx2 => 16,
            Isa::Portable => 8,
        }
    }

    /// Rows of a register tile: as many as registers hold beside the panel's two vectors.
    pub fn rows(self) -> usize {
        match self {
            Isa::Avx512 => 8,
            Isa::Avx2 => 6,
            Isa::Portable => 4,
        }
    }

    /// Its name, for `doctor` and records.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2+fma",
            Isa::Portable => "portable",
        }
    }
}

/// A vector of f32 and what kernels do with it.
///
/// # Safety
/// The methods may be called only where the instruction set they stand for is there; pointers must be valid for
/// `LANES` elements. They need no alignment.
pub unsafe trait Simd: Copy {
    /// The vector.
    type V: Copy;
    /// Elements of it.
    const LANES: usize;
    /// All lanes `x`.
    ///
    /// # Safety
    /// As the trait says; so for every method below.
    unsafe fn splat(x: f32) -> Self::V;
    /// Reads `LANES` elements.
    ///
    /// # Safety
    /// `p` is valid for reads of `LANES` elements.
    unsafe fn load(p: *const f32) -> Self::V;
    /// Writes `LANES` elements.
    ///
    /// # Safety
    /// `p` is valid for writes of `LANES` elements.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// a + b
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// a - b
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// a * b
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// a / b
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// a * b + c, rounded once where the instruction set can.
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// min(max(a, low), high)
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn clamp(a: Self::V, low: f32, high: f32) -> Self::V;
    /// The bits of each lane, shifted left by 23: the low byte of a number becomes an exponent.
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn shift_to_exponent(a: Self::V) -> Self::V;
}

/// Plain Rust.
#[derive(Clone, Copy, Debug)]
pub struct Portable;

#[inline(always)]
fn map2(a: [f32; 8], b: [f32; 8], f: impl Fn(f32, f32) -> f32) -> [f32; 8] {
    let mut out = a;
    for (o, b) in out.iter_mut().zip(b) {
        *o = f(*o, b);
    }
    out
}

// SAFETY: uses no instruction that the target lacks; loads and stores touch LANES elements.
unsafe impl Simd for Portable {
    type V = [f32; 8];
    const LANES: usize = 8;
    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 8] {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 8] {
        // SAFETY: the caller vouches for eight readable elements.
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; 8]) {
        // SAFETY: the caller vouches for eight writable elements.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        let mut out = c;
        for (o, (a, b)) in out.iter_mut().zip(a.into_iter().zip(b)) {
            // Without the instruction, `mul_add` is a slow library call.
            *o = if cfg!(any(target_arch = "aarch64", target_feature = "fma")) { a.mul_add(b, *o) } else { a * b + *o };
        }
        out
    }
    #[inline(always)]
    unsafe fn clamp(a: [f32; 8], low: f32, high: f32) -> [f32; 8] {
        a.map(|x| x.max(low).min(high))
    }
    #[inline(always)]
    unsafe fn shift_to_exponent(a: [f32; 8]) -> [f32; 8] {
        a.map(|x| f32::from_bits(x.to_bits() << 23))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Simd;

    /// 256-bit vectors with fused multiply-add.
    #[derive(Clone, Copy, Debug)]
    pub struct Avx2;

    /// 512-bit vectors.
    #[derive(Clone, Copy, Debug)]
    pub struct Avx512;

    /// One method a line: name, arguments, the expression.
    macro_rules! methods {
        ($($name:ident($($arg:ident: $ty:ty),*) -> $ret:ty { $body:expr })*) => {
            $(#[inline(always)]
            unsafe fn $name($($arg: $ty),*) -> $ret {
                // SAFETY: the caller vouches for the instruction set and, where there is one, for the pointer.
                unsafe { $body }
            })*
        };
    }

    // SAFETY: every method is the one instruction of its set that it names; loads and stores touch LANES elements.
    unsafe impl Simd for Avx2 {
        type V = __m256;
        const LANES: usize = 8;
        methods! {
            splat(x: f32) -> __m256 { _mm256_set1_ps(x) }
            load(p: *const f32) -> __m256 { _mm256_loadu_ps(p) }
            store(p: *mut f32, v: __m256) -> () { _mm256_storeu_ps(p, v) }
            add(a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
            sub(a: __m256, b: __m256) -> __m256 { _mm256_sub_ps(a, b) }
            mul(a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
            div(a: __m256, b: __m256) -> __m256 { _mm256_div_ps(a, b) }
            fma(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
            clamp(a: __m256, low: f32, high: f32) -> __m256 { _mm256_min_ps(_mm256_max_ps(a, _mm256_set1_ps(low)), _mm256_set1_ps(high)) }
            shift_to_exponent(a: __m256) -> __m256 { _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(a))) }
        }
    }

    // SAFETY: as above.
    unsafe impl Simd for Avx512 {
        type V = __m512;
        const LANES: usize = 16;
        methods! {
            splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
            load(p: *const f32) -> __m512 { _mm512_loadu_ps(p) }
            store(p: *mut f32, v: __m512) -> () { _mm512_storeu_ps(p, v) }
            add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
            sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
            mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
            div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
            fma(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
            clamp(a: __m512, low: f32, high: f32) -> __m512 { _mm512_min_ps(_mm512_max_ps(a, _mm512_set1_ps(low)), _mm512_set1_ps(high)) }
            shift_to_exponent(a: __m512) -> __m512 { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(a))) }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

/// e^x per lane for x in [-87.3, 88.3] (clamped to it), within 2 units in the last place.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by a polynomial of degree 7; 2^n by writing the exponent.
///
/// # Safety
/// The instruction set of `S` is there.
#[inline(always)]
pub unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits; 127 is the bias of the exponent.
    const ROUND: f32 = 12_582_912.0 + 127.0;
    // ln 2 in two parts: the first has so few bits that n times it is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Minimax on [-ln 2 / 2, ln 2 / 2] (the coefficients of the Cephes library's expf).
    const POLY: [f32; 5] = [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        let x = S::clamp(x, -87.3, 88.3);
        let t = S::fma(x, S::splat(std::f32::consts::LOG2_E), S::splat(ROUND));
        let n = S::sub(t, S::splat(ROUND));
        let r = S::fma(n, S::splat(-LN2_LOW), S::fma(n, S::splat(-LN2_HIGH), x));
        let mut p = S::splat(1.987_569_1e-4);
        for c in POLY {
            p = S::fma(p, r, S::splat(c));
        }
        let e = S::add(S::fma(p, S::mul(r, r), r), S::splat(1.0));
        S::mul(e, S::shift_to_exponent(t))
    }
}

/// 1 / (1 + e^-x) per lane.
///
/// # Safety
/// The instruction set of `S` is there.
#[inline(always)]
pub unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        let one = S::splat(1.0);
        S::div(one, S::add(one, exp::<S>(S::sub(S::splat(0.0), x))))
    }
}

/// Makes `$name(isa, args)`: calls `$kernel::<S, R, V>(args)` compiled for the instruction set `isa`, where a register
/// tile is R rows by V vectors (it must fit the registers: 16 + 2 of 32, 12 + 3 of 16, and so on).
macro_rules! simd_dispatch {
    ($(#[$doc:meta])* $vis:vis unsafe fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $kernel:ident) => {
        $(#[$doc])*
        $vis unsafe fn $name(isa: $crate::device::cpu::simd::Isa, $($arg: $ty),*) {
            use $crate::device::cpu::simd::{Isa, Portable};
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx2,fma")]
            unsafe fn avx512($($arg: $ty),*) {
                // SAFETY: this function is entered only where AVX-512 was found; the rest is the caller's.
                unsafe { $kernel::<$crate::device::cpu::simd::Avx512, 8, 2>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2($($arg: $ty),*) {
                // SAFETY: this function is entered only where AVX2 and FMA were found; the rest is the caller's.
                unsafe { $kernel::<$crate::device::cpu::simd::Avx2, 6, 2>($($arg),*) }
            }
            // SAFETY: `Isa::detect` gives only what the processor has; the rest is the caller's.
            unsafe {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 => avx512($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => avx2($($arg),*),
                    _ => $kernel::<Portable, 4, 1>($($arg),*),
                }
            }
        }
    };
}
pub(crate) use simd_dispatch;

#[cfg(test)]
mod tests {
    use super::*;

    unsafe fn exps<S: Simd, const R: usize, const V: usize>(xs: &[f32], out: &mut [f32]) {
        for (x, o) in xs.chunks_exact(S::LANES).zip(out.chunks_exact_mut(S::LANES)) {
            // SAFETY: the chunks are LANES long.
            unsafe { S::store(o.as_mut_ptr(), exp::<S>(S::load(x.as_ptr()))) }
        }
    }

    simd_dispatch!(unsafe fn run_exps(xs: &[f32], out: &mut [f32]) = exps);

    #[test]
    fn exp_is_within_two_units_in_the_last_place_on_every_instruction_set() {
        let xs: Vec<f32> = (0..160_000).map(|i| -87.0 + i as f32 * (175.0 / 160_000.0)).collect();
        for isa in Isa::available() {
            let mut out = vec![f32::NAN; xs.len()];
            // SAFETY: the instruction set was found above.
            unsafe { run_exps(isa, &xs, &mut out) };
            for (&x, &got) in xs.iter().zip(&out) {
                let want = f64::from(x).exp();
                let ulp = f64::from(f32::EPSILON) * want;
                assert!((f64::from(got) - want).abs() <= 2.0 * ulp, "{isa:?}: exp({x}) = {got}, want {want}");
            }
        }
    }
}
