//! The stem: y = x W^T + b by register tiles of our own, because every implementation of the SwiGLU layer pays for it.
//!
//! A library packs the large operand, here the weights, for every product; with 64 images that is a third of its time.
//! Here weights are read where they stand, one broadcast at a time, and the images are packed: vectors run along the
//! batch, as in the fused SwiGLU kernels. It reads x, W and b from memory and writes y. It never lost to the library at
//! 1 to 512 images (`cargo bench -- stem`), although below 32 it computes lanes that nobody reads.

use super::{
    Cpu, SharedMut,
    simd::{Simd, simd_dispatch},
    tile::{pack_panels, tile},
    with_shared_scratch,
};

/// Images that are packed at a time: 1.6 MB at 784 inputs, whatever the batch.
const BATCH_BLOCK: usize = 512;

/// y = x W^T + b: (B, K) @ (K, N) + (N) -> (B, N).
pub fn linear(cpu: &Cpu, x: &[f32], w: &[f32], bias: &[f32], y: &mut [f32]) {
    let (outputs, width, rows) = (bias.len(), cpu.isa().panel(), cpu.isa().rows());
    if outputs == 0 || y.is_empty() {
        return;
    }
    let (inputs, batch) = (w.len() / outputs, y.len() / outputs);
    let size = inputs * width;
    let y = SharedMut::new(y);
    with_shared_scratch(batch.min(BATCH_BLOCK).div_ceil(width) * size, |panels| {
        for first in (0..batch).step_by(BATCH_BLOCK) {
            let images = first..batch.min(first + BATCH_BLOCK);
            pack_panels(cpu, x, inputs, first, images.len(), panels);
            cpu.for_each(outputs.div_ceil(rows), |task| {
                let rows = task * rows..outputs.min((task + 1) * rows);
                // SAFETY: these columns of y belong to this task.
                unsafe { linear_kernel(cpu.isa(), w, bias, panels, images.clone(), rows, &y) }
            });
        }
    });
}

simd_dispatch!(unsafe fn linear_kernel(
    w: &[f32],
    bias: &[f32],
    panels: &[f32],
    images: std::ops::Range<usize>,
    outputs: std::ops::Range<usize>,
    y: &SharedMut<'_>,
) = linear_tiles);

/// R outputs at a time, each against every panel of images.
#[inline(always)]
unsafe fn linear_tiles<S: Simd, const R: usize, const V: usize>(
    w: &[f32],
    bias: &[f32],
    panels: &[f32],
    images: std::ops::Range<usize>,
    outputs: std::ops::Range<usize>,
    y: &SharedMut<'_>,
) {
    let (total, width) = (bias.len(), V * S::LANES);
    let inputs = w.len() / total;
    for n in outputs.clone().step_by(R) {
        // Beyond the last output the last is taken again, and its result left unused.
        let mut rows = [w.as_ptr(); R];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = w[(n + r).min(outputs.end - 1) * inputs..].as_ptr();
        }
        let valid = R.min(outputs.end - n);
        for (b, panel) in images.clone().step_by(width).zip(panels.chunks_exact(inputs * width)) {
            // SAFETY: each row is `inputs` long, the panel inputs x width; a row of `transposed` holds whole vectors;
            // columns n..n + valid of y belong to this task.
            unsafe {
                let acc = tile::<S, R, V>(inputs, rows, 1, panel.as_ptr());
                let mut transposed = [[0.0_f32; 32]; 8];
                for (r, acc) in acc.iter().enumerate().take(valid) {
                    let bias = S::splat(bias[n + r]);
                    for (v, acc) in acc.iter().enumerate() {
                        S::store(transposed[r].as_mut_ptr().add(v * S::LANES), S::add(*acc, bias));
                    }
                }
                for j in 0..width.min(images.end - b) {
                    let to = y.at((b + j) * total + n);
                    for (r, row) in transposed.iter().enumerate().take(valid) {
                        to.add(r).write(row[j]);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        device::cpu::simd::Isa,
        rng::{Purpose, normal},
    };

    #[test]
    fn outputs_equal_the_sums_written_out_on_every_instruction_set_and_number_of_threads() {
        for (batch, inputs, outputs) in [(1, 1, 1), (33, 784, 25), (70, 65, 130), (600, 17, 9)] {
            let x = normal(1, Purpose::Operand(0), batch * inputs, 1.0);
            let w = normal(1, Purpose::Operand(1), outputs * inputs, 1.0);
            let bias = normal(1, Purpose::Operand(2), outputs, 1.0);
            for isa in Isa::available() {
                let run = |threads| {
                    let mut y = vec![f32::NAN; batch * outputs];
                    linear(&Cpu::with_isa(threads, isa).expect("a pool"), &x, &w, &bias, &mut y);
                    y
                };
                let y = run(1);
                assert!(y == run(3), "{isa:?} {batch} x {inputs} x {outputs}: three threads differ from one");
                for (b, row) in y.chunks_exact(outputs).enumerate() {
                    for (n, &got) in row.iter().enumerate() {
                        let products = (0..inputs).map(|k| f64::from(x[b * inputs + k] * w[n * inputs + k]));
                        let want = f64::from(bias[n]) + products.sum::<f64>();
                        assert!((f64::from(got) - want).abs() < 1e-3, "{isa:?} ({b}, {n}): {got}, want {want}");
                    }
                }
            }
        }
    }
}
