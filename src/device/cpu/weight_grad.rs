//! The gradient of a weight, dW = dy^T x, whose epilogue stores it or applies SGD: of the fused SwiGLU layer and of the stem.
//!
//! With SGD in the epilogue the gradient exists in registers alone: neither written nor read again, which at 64 images is two
//! passes of five over a weight, its velocity and its gradient. Each element is summed over the batch in order, by one thread.

use super::{
    Cpu, SharedMut,
    ops::sgd_vector,
    simd::{Simd, simd_dispatch},
    tile::{pack_columns, store_row, tile},
    with_shared_scratch,
};
use crate::device::SgdStep;

/// Where the gradient's tiles go.
pub enum Target<'a> {
    /// Into dW.
    Buffer(&'a mut [f32]),
    /// Into W and its velocity, by one step of SGD.
    Step(SgdStep, &'a mut [f32], &'a mut [f32]),
}

/// The same, shared between tasks.
enum Out<'a> {
    Buffer(SharedMut<'a>),
    Step(SgdStep, SharedMut<'a>, SharedMut<'a>),
}

/// dy^T: `rows` rows, one an output, with `batch` elements each and `stride` between them.
#[derive(Clone, Copy)]
pub struct Transposed<'a> {
    /// Storage.
    pub data: &'a [f32],
    /// Outputs.
    pub rows: usize,
    /// Images.
    pub batch: usize,
    /// Floats between two rows.
    pub stride: usize,
}

/// Floats of packed x that the tiles of a block of columns go through again and again: half of a 1 MB cache.
const PACKED_X: usize = 128 * 1024;
/// Floats between transposed rows beyond the batch, so that they do not all fall into one set of the cache.
const PAD: usize = 16;
/// Outputs that a task transposes: a cache line of dy.
const LINE: usize = 16;

/// dW = dy^T x: (N, B) @ (B, K) -> (N, K), or the step of SGD that it stands for.
///
/// A task walks along its rows of W, so that weights and velocity are read and written in the order they lie in: going
/// down one panel of columns instead, each line of them came from another page, and that took twice as long. Its rows are a
/// register tile of each of `parts` equal parts of W, as one of the forward's is: a thread, whose share of the tasks is always
/// the same, writes what it reads next.
pub fn weight_grad(cpu: &Cpu, dy: Transposed<'_>, parts: usize, x: &[f32], target: Target<'_>) {
    let (part, inputs) = (dy.rows / parts, x.len() / dy.batch);
    let (width, rows) = (cpu.isa().panel(), cpu.isa().rows());
    let out = match target {
        Target::Buffer(dw) => Out::Buffer(SharedMut::new(dw)),
        Target::Step(rule, w, v) => Out::Step(rule, SharedMut::new(w), SharedMut::new(v)),
    };
    let size = dy.batch * width;
    let block = (PACKED_X / size).max(1).min(inputs.div_ceil(width));
    with_shared_scratch(block * size, |scratch| {
        for first in (0..inputs).step_by(block * width) {
            let cols = first..inputs.min(first + block * width);
            let panels = SharedMut::new(&mut *scratch);
            cpu.for_each(cols.len().div_ceil(width), |p| {
                let k = first + p * width;
                // SAFETY: each panel belongs to one task.
                let panel = unsafe { panels.slice(p * size, size) };
                pack_columns(x, dy.batch, inputs, k, width.min(cols.end - k), width, panel);
            });
            cpu.for_each(part.div_ceil(rows), |task| {
                for begin in (0..dy.rows).step_by(part) {
                    let rows = begin + task * rows..begin + part.min((task + 1) * rows);
                    // SAFETY: these rows of dW (or W) belong to this task.
                    unsafe { weight_kernel(cpu.isa(), dy, scratch, rows, inputs, cols.clone(), &out) }
                }
            });
        }
    });
}

/// A step of SGD on the weight of y = x W^T, from dy (B, N) and x (B, K).
pub fn linear_step(cpu: &Cpu, dy: &[f32], batch: usize, x: &[f32], target: Target<'_>) {
    let (rows, stride) = (dy.len() / batch, batch + PAD);
    with_shared_scratch(rows * stride, |transposed| {
        let out = SharedMut::new(transposed);
        cpu.for_each(rows.div_ceil(LINE), |task| {
            let (first, count) = (task * LINE, LINE.min(rows - task * LINE));
            // SAFETY: these rows belong to this task.
            let to = unsafe { out.slice(first * stride, count * stride) };
            for (b, dy) in dy.chunks_exact(rows).enumerate() {
                for (n, &dy) in dy[first..first + count].iter().enumerate() {
                    to[n * stride + b] = dy;
                }
            }
        });
        weight_grad(cpu, Transposed { data: transposed, rows, batch, stride }, 1, x, target);
    });
}

simd_dispatch!(unsafe fn weight_kernel(
    dy: Transposed<'_>,
    panels: &[f32],
    rows: std::ops::Range<usize>,
    inputs: usize,
    cols: std::ops::Range<usize>,
    out: &Out<'_>,
) = weight_tiles);

#[inline(always)]
unsafe fn weight_tiles<S: Simd, const R: usize, const V: usize>(
    dy: Transposed<'_>,
    panels: &[f32],
    rows: std::ops::Range<usize>,
    inputs: usize,
    cols: std::ops::Range<usize>,
    out: &Out<'_>,
) {
    let width = V * S::LANES;
    for n in rows.clone().step_by(R) {
        let mut from = [dy.data.as_ptr(); R];
        for (r, row) in from.iter_mut().enumerate() {
            *row = dy.data[(n + r).min(rows.end - 1) * dy.stride..].as_ptr();
        }
        for (k, panel) in cols.clone().step_by(width).zip(panels.chunks_exact(dy.batch * width)) {
            // SAFETY: each row holds a batch; the panel is batch x width.
            let acc = unsafe { tile::<S, R, V>(dy.batch, from, 1, panel.as_ptr()) };
            for (r, acc) in acc.iter().enumerate().take(rows.end - n) {
                // SAFETY: row n + r belongs to this task, and the columns end with the matrix.
                unsafe { finish_row::<S, V>(*acc, (n + r) * inputs + k, width.min(cols.end - k), out) }
            }
        }
    }
}

/// Stores `count` elements of a row of the gradient at `at`, or applies SGD to the weights there.
///
/// # Safety
/// The instruction set of `S` is there; elements at..at + count are in the target, and no other task touches them.
#[inline(always)]
unsafe fn finish_row<S: Simd, const V: usize>(grad: [S::V; V], at: usize, count: usize, out: &Out<'_>) {
    // SAFETY: as the caller vouches.
    unsafe {
        match out {
            Out::Buffer(dw) => store_row::<S, V>(grad, dw.at(at), count),
            Out::Step(rule, w, v) => {
                for (i, grad) in grad.into_iter().enumerate().take(count / S::LANES) {
                    sgd_vector::<S>(rule, w.at(at + i * S::LANES), v.at(at + i * S::LANES), grad);
                }
                let whole = count / S::LANES * S::LANES;
                if whole < count {
                    let mut row = [0.0; 32];
                    store_row::<S, V>(grad, row.as_mut_ptr(), V * S::LANES);
                    let (w, v) = (w.slice(at + whole, count - whole), v.slice(at + whole, count - whole));
                    for ((w, v), grad) in w.iter_mut().zip(v).zip(&row[whole..]) {
                        rule.apply(w, v, *grad);
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
        device::cpu::{
            gemm::{View, gemm},
            ops,
            simd::Isa,
        },
        rng::{Purpose, normal},
    };

    #[test]
    fn a_step_is_the_product_and_then_the_rule_on_every_instruction_set_and_number_of_threads() {
        let rule =
            SgdStep { lr: 0.1, momentum: 0.9, weight_decay: 0.01, nesterov: false, scale: 1.0, device_scale: false };
        for (batch, outputs, inputs) in [(1, 1, 1), (64, 40, 784), (33, 25, 70), (70, 130, 9)] {
            let random = |i, count| normal(1, Purpose::Operand(i), count, 1.0);
            let (dy, x) = (random(0, batch * outputs), random(1, batch * inputs));
            let (w, v) = (random(2, outputs * inputs), random(3, outputs * inputs));
            for isa in Isa::available() {
                let run = |threads| {
                    let (mut w, mut v) = (w.clone(), v.clone());
                    let cpu = Cpu::with_isa(threads, isa).unwrap();
                    linear_step(&cpu, &dy, batch, &x, Target::Step(rule, &mut w, &mut v));
                    (w, v)
                };
                let (got_w, got_v) = run(1);
                assert!((got_w.clone(), got_v.clone()) == run(3), "{isa:?}: three threads differ from one");
                let cpu = Cpu::with_isa(1, isa).unwrap();
                let (mut w, mut v, mut grad) = (w.clone(), v.clone(), vec![0.0; outputs * inputs]);
                gemm(&cpu, View::new(&dy, batch, outputs).t(), View::new(&x, batch, inputs), 0.0, &mut grad).unwrap();
                ops::sgd(&cpu, &rule, true, &mut w, &mut v, &grad);
                for (got, want) in got_w.iter().chain(&got_v).zip(w.iter().chain(&v)) {
                    assert!((got - want).abs() < 1e-4, "{isa:?} {batch} x {outputs} x {inputs}: {got}, want {want}");
                }
            }
        }
    }
}
