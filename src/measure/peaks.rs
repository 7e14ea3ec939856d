//! What the device can do at best: the fastest arithmetic and the fastest traffic, measured in the run that they judge.
//!
//! On the CPU: fused multiply-adds in registers, or the library GEMM should it be faster; sums over buffers in memory and in
//! cache. On a GPU: the library GEMM at 8192^3, and a copy. Of emulated fp32, for which there is no library GEMM: what the tensor
//! cores leave of their rate when each product is three of TF32 or six of bf16, the fewest that keep 24 bits.

use std::{hint::black_box, time::Instant};

use super::{record::Peaks, timer::last_cache_bytes};
use crate::{
    Result,
    device::{
        Device, Layout,
        cpu::{
            Cpu, SharedMut,
            simd::{Isa, Simd, simd_dispatch},
        },
        cuda::timing::L2,
    },
    rng::{Purpose, normal},
    swiglu::Precision,
};

/// Measures the peaks of `device` in `precision`.
///
/// # Errors
/// When the device fails.
pub fn measure(device: &Device, precision: Precision) -> Result<Peaks> {
    match device {
        Device::Cpu(cpu) => Ok(Peaks {
            device: device.name(),
            precision,
            tflops: fma_flops(cpu) / 1e12,
            memory_gbytes_per_s: read_bytes_per_s(cpu, 4 * last_cache_bytes()) / 1e9,
            cache_gbytes_per_s: read_bytes_per_s(cpu, cpu.threads() * (256 << 10)) / 1e9,
        }),
        Device::Cuda(cuda) => {
            let rate = |precision| gemm_flops(&device.with_precision(precision), precision);
            let flops = match precision {
                // Three products of 16-bit operands, or of TF32, for one.
                Precision::Fp32Emulated => rate(Precision::Tf32)?.max(rate(Precision::Bf16)?) / 3.0,
                _ => rate(precision)?,
            };
            Ok(Peaks {
                device: device.name(),
                precision,
                tflops: flops / 1e12,
                memory_gbytes_per_s: cuda.bytes_per_s(1 << 30)? / 1e9,
                // 3 x 12 MiB stay in the L2 of every GPU that the kernels run on but the smallest.
                cache_gbytes_per_s: cuda.bytes_per_s(12 << 20)? / 1e9,
            })
        }
    }
}

/// The library GEMM on random operands: zeros would run faster than any real product.
fn gemm_flops(device: &Device, precision: Precision) -> Result<f64> {
    let Device::Cuda(cuda) = device else { return Ok(0.0) };
    // Long enough for the clocks to settle, short enough to be bearable on the ordinary cores.
    let n = if precision == Precision::Fp32 { 4096 } else { 8192 };
    let random = normal(7, Purpose::Operand(0), 1 << 20, 1.0);
    let values: Vec<f32> = random.iter().copied().cycle().take(n * n).collect();
    let a = device.upload_activations(n, n, &values)?;
    let b = device.upload_activations(n, n, &values)?;
    let mut c = device.activations(n, n)?;
    let timed = cuda.timed(L2::Warm, || device.gemm(Layout::Nt, &a, &b, 0.0, &mut c))?;
    let best = timed.samples(1, 5)?.first().copied().unwrap_or(f64::INFINITY);
    Ok(2.0 * (n as f64).powi(3) / best * 1e3)
}

/// Times each peak is measured; the best counts, since a busy machine only ever makes it look slower.
const ATTEMPTS: usize = 48;
/// Rounds of the arithmetic of one attempt: about 10 ms.
const ROUNDS: usize = 2_000_000;
/// Sums that do not wait for one another: two units, four cycles each, and some more.
const CHAINS: usize = 12;

fn fma_flops(cpu: &Cpu) -> f64 {
    let threads = cpu.threads();
    let lanes = if cpu.isa() == Isa::Avx512 { 16 } else { 8 };
    let flop = (threads * ROUNDS * CHAINS * 2 * lanes) as f64;
    best(|| {
        let begin = Instant::now();
        let mut sums = vec![[0_f32; 16]; threads];
        let out = SharedMut::new(sums.as_flattened_mut());
        cpu.for_each(threads, |thread| {
            let mut sum = [0_f32; 16];
            // SAFETY: the instruction set was found; the buffer holds sixteen, the widest vector; each thread writes its own.
            unsafe {
                multiply_add(cpu.isa(), &mut sum);
                out.slice(16 * thread, 16).copy_from_slice(&sum);
            }
        });
        black_box(&sums);
        flop / begin.elapsed().as_secs_f64()
    })
}

simd_dispatch!(unsafe fn multiply_add(sum: &mut [f32; 16]) = multiply_add_kernel);

#[inline(always)]
unsafe fn multiply_add_kernel<S: Simd, const R: usize, const V: usize>(sum: &mut [f32; 16]) {
    // SAFETY: no pointer but that of `sum`, which is as long as the widest vector.
    unsafe {
        let (factor, term) = (S::splat(black_box(0.999)), S::splat(black_box(0.001)));
        let mut chains = [S::splat(1.0); CHAINS];
        for _ in 0..ROUNDS {
            for chain in &mut chains {
                *chain = S::fma(*chain, factor, term);
            }
        }
        let total = chains.into_iter().reduce(|a, b| S::add(a, b)).unwrap_or(term);
        S::store(sum.as_mut_ptr(), total);
    }
}

/// Reading `bytes`, over and over when they are few.
fn read_bytes_per_s(cpu: &Cpu, bytes: usize) -> f64 {
    let buffer = vec![1_u64; bytes / size_of::<u64>()];
    let part = buffer.len().div_ceil(cpu.threads());
    let passes = ((64 << 20) / bytes).max(1);
    best(|| {
        let begin = Instant::now();
        cpu.for_each(cpu.threads(), |thread| {
            let part = buffer.chunks(part).nth(thread).unwrap_or_default();
            for _ in 0..passes {
                black_box(black_box(part).iter().fold(0_u64, |sum, word| sum.wrapping_add(*word)));
            }
        });
        (passes * bytes) as f64 / begin.elapsed().as_secs_f64()
    })
}

fn best(attempt: impl Fn() -> f64) -> f64 {
    (0..ATTEMPTS).map(|_| attempt()).fold(0.0, f64::max)
}
