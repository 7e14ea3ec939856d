//! The operations around the SwiGLU layer: gather, the ten-wide head, softmax cross-entropy, SGD.
//!
//! Every sum is taken in an order that the shapes alone decide, so that results do not depend on the number of threads.

use super::{Cpu, SharedMut, simd::Simd, simd::simd_dispatch};
use crate::{
    data::{CLASSES, MEAN, PIXELS, STD},
    device::SgdStep,
};

/// Elements a task of an elementwise operation handles: 4 us of work, and a hundred tasks for a stem of 512.
const CHUNK: usize = 4 * 1024;
/// Elements of a partial sum of squares: their order decides the last bits of the sum.
const SUM_CHUNK: usize = 16 * 1024;

/// x\[i\] = (images\[rows[i\]] / 255 - mean) / std, (B, 784), and labels\[i\] = all_labels\[rows[i\]].
pub fn gather(cpu: &Cpu, images: &[u8], all_labels: &[u8], rows: &[u32], x: &mut [f32], labels: &mut [u8]) {
    const IMAGES: usize = 4;
    // A byte has 256 values: the normalisation is a table.
    let table: [f32; 256] = std::array::from_fn(|byte| (byte as f32 / 255.0 - MEAN) / STD);
    let out = SharedMut::new(x);
    cpu.for_each(rows.len().div_ceil(IMAGES), |task| {
        for (i, &row) in rows.iter().enumerate().skip(task * IMAGES).take(IMAGES) {
            // SAFETY: image i of the batch belongs to one task.
            let x = unsafe { out.slice(i * PIXELS, PIXELS) };
            for (x, &byte) in x.iter_mut().zip(&images[row as usize * PIXELS..][..PIXELS]) {
                *x = table[usize::from(byte)];
            }
        }
    });
    for (label, &row) in labels.iter_mut().zip(rows) {
        *label = all_labels[row as usize];
    }
}

/// sums\[j\] = sum over rows of y\[i\]\[j\], (B, N) -> (N).
pub fn column_sums(cpu: &Cpu, y: &[f32], sums: &mut [f32]) {
    const COLS: usize = 64;
    let (n, out) = (sums.len(), SharedMut::new(sums));
    cpu.for_each(n.div_ceil(COLS), |task| {
        let (first, count) = (task * COLS, COLS.min(n - task * COLS));
        // SAFETY: these columns belong to this task.
        let sums = unsafe { out.slice(first, count) };
        sums.fill(0.0);
        for row in y.chunks_exact(n) {
            sums.iter_mut().zip(&row[first..first + count]).for_each(|(s, y)| *s += y);
        }
    });
}

/// logits = x W^T + b for the ten-wide head, (B, H) @ (H, 10) -> (B, 10). A GEMM would waste most of its tile on ten
/// columns; ten dot products side by side read each x once.
pub fn head_forward(cpu: &Cpu, x: &[f32], w: &[f32], bias: &[f32], logits: &mut [f32]) {
    let hidden = w.len() / CLASSES;
    let (batch, out) = (logits.len() / CLASSES, SharedMut::new(logits));
    let rows = 4;
    cpu.for_each(batch.div_ceil(rows), |task| {
        let (first, count) = (task * rows, rows.min(batch - task * rows));
        // SAFETY: the slices have the lengths that the kernel reads, and these rows of logits belong to this task.
        unsafe {
            head_rows(
                cpu.isa(),
                hidden,
                &x[first * hidden..][..count * hidden],
                w,
                bias,
                out.slice(first * CLASSES, count * CLASSES),
            );
        }
    });
}

simd_dispatch!(unsafe fn head_rows(hidden: usize, x: &[f32], w: &[f32], bias: &[f32], logits: &mut [f32]) = head_rows_kernel);

#[inline(always)]
unsafe fn head_rows_kernel<S: Simd, const R: usize, const V: usize>(
    hidden: usize,
    x: &[f32],
    w: &[f32],
    bias: &[f32],
    logits: &mut [f32],
) {
    let vectors = hidden / S::LANES;
    for (x, logits) in x.chunks_exact(hidden).zip(logits.chunks_exact_mut(CLASSES)) {
        // SAFETY: indices stay below `hidden` in x and in each of the ten rows of w.
        unsafe {
            let mut acc = [S::splat(0.0); CLASSES];
            for i in 0..vectors {
                let x = S::load(x.as_ptr().add(i * S::LANES));
                for (class, acc) in acc.iter_mut().enumerate() {
                    *acc = S::fma(x, S::load(w.as_ptr().add(class * hidden + i * S::LANES)), *acc);
                }
            }
            for (class, acc) in acc.iter().enumerate() {
                let mut lanes = [0.0; 16];
                S::store(lanes.as_mut_ptr(), *acc);
                let mut sum: f32 = lanes[..S::LANES].iter().sum();
                for i in vectors * S::LANES..hidden {
                    sum += x[i] * w[class * hidden + i];
                }
                logits[class] = sum + bias[class];
            }
        }
    }
}

/// dx = dlogits W, (B, 10) @ (10, H) -> (B, H).
pub fn head_backward_dx(cpu: &Cpu, dlogits: &[f32], w: &[f32], dx: &mut [f32]) {
    let hidden = w.len() / CLASSES;
    let (batch, out) = (dlogits.len() / CLASSES, SharedMut::new(dx));
    let rows = 4;
    cpu.for_each(batch.div_ceil(rows), |task| {
        let (first, count) = (task * rows, rows.min(batch - task * rows));
        // SAFETY: these rows belong to this task; the kernel reads and writes `count` rows of `hidden`.
        unsafe {
            combine(
                cpu.isa(),
                hidden,
                &dlogits[first * CLASSES..][..count * CLASSES],
                w,
                out.slice(first * hidden, count * hidden),
            );
        }
    });
}

simd_dispatch!(unsafe fn combine(hidden: usize, dlogits: &[f32], w: &[f32], dx: &mut [f32]) = combine_kernel);

#[inline(always)]
unsafe fn combine_kernel<S: Simd, const R: usize, const V: usize>(
    hidden: usize,
    dlogits: &[f32],
    w: &[f32],
    dx: &mut [f32],
) {
    let whole = hidden / S::LANES * S::LANES;
    for (dl, dx) in dlogits.chunks_exact(CLASSES).zip(dx.chunks_exact_mut(hidden)) {
        for j in (0..whole).step_by(S::LANES) {
            // SAFETY: j + LANES <= hidden in dx and in each of the ten rows of w.
            unsafe {
                let mut acc = S::splat(0.0);
                for (class, &dl) in dl.iter().enumerate() {
                    acc = S::fma(S::splat(dl), S::load(w.as_ptr().add(class * hidden + j)), acc);
                }
                S::store(dx.as_mut_ptr().add(j), acc);
            }
        }
        for j in whole..hidden {
            dx[j] = dl.iter().enumerate().map(|(class, &dl)| dl * w[class * hidden + j]).sum();
        }
    }
}

/// dW = dlogits^T x, (10, B) @ (B, H) -> (10, H); db = column sums of dlogits, (10).
pub fn head_backward_dw(cpu: &Cpu, dlogits: &[f32], x: &[f32], dw: &mut [f32], db: &mut [f32]) {
    const COLS: usize = 32;
    let hidden = dw.len() / CLASSES;
    let out = SharedMut::new(dw);
    cpu.for_each(hidden.div_ceil(COLS), |task| {
        // SAFETY: these columns of dw belong to this task; x and dlogits hold the same number of rows.
        unsafe { outer(cpu.isa(), hidden, task * COLS, COLS.min(hidden - task * COLS), dlogits, x, &out) }
    });
    column_sums(cpu, dlogits, db);
}

simd_dispatch!(unsafe fn outer(hidden: usize, first: usize, cols: usize, dlogits: &[f32], x: &[f32], dw: &SharedMut<'_>) = outer_kernel);

#[inline(always)]
unsafe fn outer_kernel<S: Simd, const R: usize, const V: usize>(
    hidden: usize,
    first: usize,
    cols: usize,
    dlogits: &[f32],
    x: &[f32],
    dw: &SharedMut<'_>,
) {
    let batch = dlogits.len() / CLASSES;
    let whole = cols / S::LANES * S::LANES;
    for j in (first..first + whole).step_by(S::LANES) {
        // SAFETY: j + LANES <= first + cols <= hidden; rows below `batch`.
        unsafe {
            let mut acc = [S::splat(0.0); CLASSES];
            for b in 0..batch {
                let x = S::load(x.as_ptr().add(b * hidden + j));
                for (class, acc) in acc.iter_mut().enumerate() {
                    *acc = S::fma(S::splat(*dlogits.get_unchecked(b * CLASSES + class)), x, *acc);
                }
            }
            for (class, acc) in acc.iter().enumerate() {
                S::store(dw.at(class * hidden + j), *acc);
            }
        }
    }
    for j in first + whole..first + cols {
        for class in 0..CLASSES {
            let sum = (0..batch).map(|b| dlogits[b * CLASSES + class] * x[b * hidden + j]).sum();
            // SAFETY: this column belongs to this task.
            unsafe { dw.at(class * hidden + j).write(sum) }
        }
    }
}

/// Softmax cross-entropy of each row. Adds the losses and the rows whose largest logit is the label's to the tally, and
/// writes dlogits = (softmax - onehot) / B when wanted.
///
/// A row of ten: the work is too small to share between threads.
pub fn softmax_cross_entropy(
    logits: &[f32],
    labels: &[u8],
    mut dlogits: Option<&mut [f32]>,
    loss_sum: &mut f64,
    correct: &mut u64,
) {
    let scale = 1.0 / labels.len() as f32;
    for (i, (row, &label)) in logits.chunks_exact(CLASSES).zip(labels).enumerate() {
        let label = usize::from(label);
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exps: [f32; CLASSES] = std::array::from_fn(|j| (row[j] - max).exp());
        let sum: f32 = exps.iter().sum();
        *loss_sum += f64::from(sum).ln() - f64::from(row[label] - max);
        *correct += u64::from(argmax(row) == label);
        if let Some(d) = dlogits.as_deref_mut() {
            for (j, (d, e)) in d[i * CLASSES..][..CLASSES].iter_mut().zip(exps).enumerate() {
                *d = (e / sum - f32::from(j == label)) * scale;
            }
        }
    }
}

/// Index of the largest element; the first of equals.
pub fn argmax(row: &[f32]) -> usize {
    let mut best = 0;
    for (j, &value) in row.iter().enumerate() {
        if value > row[best] {
            best = j;
        }
    }
    best
}

/// One step of SGD on a parameter, elementwise.
pub fn sgd(cpu: &Cpu, step: &SgdStep, decays: bool, w: &mut [f32], velocity: &mut [f32], grad: &[f32]) {
    let len = w.len();
    let (w, velocity) = (SharedMut::new(w), SharedMut::new(velocity));
    let rule = step.for_param(decays);
    cpu.for_each(len.div_ceil(CHUNK), |task| {
        let (first, count) = (task * CHUNK, CHUNK.min(len - task * CHUNK));
        // SAFETY: these elements belong to this task.
        unsafe {
            sgd_chunk(
                cpu.isa(),
                &rule,
                w.slice(first, count),
                velocity.slice(first, count),
                &grad[first..first + count],
            )
        }
    });
}

simd_dispatch!(unsafe fn sgd_chunk(rule: &SgdStep, w: &mut [f32], velocity: &mut [f32], grad: &[f32]) = sgd_kernel);

#[inline(always)]
unsafe fn sgd_kernel<S: Simd, const R: usize, const V: usize>(
    rule: &SgdStep,
    w: &mut [f32],
    velocity: &mut [f32],
    grad: &[f32],
) {
    let whole = w.len() / S::LANES * S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: the three slices are equally long, and i + LANES is within them.
        unsafe {
            let (w, v) = (w.as_mut_ptr().add(i), velocity.as_mut_ptr().add(i));
            sgd_vector::<S>(rule, w, v, S::load(grad.as_ptr().add(i)));
        }
    }
    for i in whole..w.len() {
        rule.apply(&mut w[i], &mut velocity[i], grad[i]);
    }
}

/// The rule of [`SgdStep::apply`] on one vector; `rule` is already that of the parameter.
///
/// # Safety
/// The instruction set of `S` is there; `w` and `v` are valid for LANES elements.
#[inline(always)]
pub unsafe fn sgd_vector<S: Simd>(rule: &SgdStep, w: *mut f32, v: *mut f32, grad: S::V) {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        let (old, momentum) = (S::load(w), S::splat(rule.momentum));
        let g = S::fma(S::splat(rule.weight_decay), old, S::mul(grad, S::splat(rule.scale)));
        let velocity = S::fma(momentum, S::load(v), g);
        let update = if rule.nesterov { S::fma(momentum, velocity, g) } else { velocity };
        S::store(v, velocity);
        S::store(w, S::fma(S::splat(-rule.lr), update, old));
    }
}

/// Sum of squares, for the norm of gradients: chunks in f64, added up in order.
pub fn sum_of_squares(cpu: &Cpu, values: &[f32]) -> f64 {
    let mut sums = vec![0_f64; values.len().div_ceil(SUM_CHUNK)];
    {
        let out = std::sync::Mutex::new(&mut sums);
        cpu.for_each(values.len().div_ceil(SUM_CHUNK), |task| {
            let chunk = &values[task * SUM_CHUNK..values.len().min((task + 1) * SUM_CHUNK)];
            let sum = chunk.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            if let Ok(mut sums) = out.lock() {
                sums[task] = sum;
            }
        });
    }
    sums.iter().sum()
}
