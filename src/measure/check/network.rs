//! The reference of a whole training step: stem, SwiGLU layers, head, loss and SGD in f64, written to be read and not to be fast.
//! It shares nothing with `model` but names and formulas; `tests/gradients.rs` checks its gradients against central differences.

use std::collections::BTreeMap;

use crate::{
    data::{CLASSES, PIXELS},
    device::SgdStep,
    swiglu::reference::{Dims, swiglu_f64},
};

/// Numbers by the names of a checkpoint.
pub type Params = BTreeMap<String, Vec<f64>>;

/// A network in f64, with the velocities of its weights.
#[derive(Clone, Debug)]
pub struct Network {
    /// D: outputs of the stem.
    pub inputs: usize,
    /// H: outputs of each SwiGLU layer.
    pub hidden: usize,
    /// SwiGLU layers.
    pub depth: usize,
    /// Whether the SwiGLU layers learn.
    pub trains_layers: bool,
    /// Weights.
    pub weights: Params,
    /// Their momentum.
    pub velocities: Params,
    /// What becomes of a number that a product reads: nothing in the reference; a low precision's rounding where its error is
    /// to be known.
    pub rounding: fn(f64) -> f64,
}

impl Network {
    /// Mean loss and the gradients of every weight, on images x (B, 784) with their labels.
    pub fn gradients(&self, x: &[f64], labels: &[u8]) -> (f64, Params) {
        let (batch, depth) = (labels.len(), self.depth);
        let round = |values: &[f64]| values.iter().map(|&value| (self.rounding)(value)).collect::<Vec<f64>>();
        let weight = |name: &str| round(&self.weights[name]);
        let x = round(x);

        // (B, 784) @ (784, D) + (D) -> (B, D)
        let (stem, head) = (weight("stem.weight"), weight("head.weight"));
        let mut outputs = vec![round(&linear(&x, &stem, &self.weights["stem.bias"], PIXELS))];
        for layer in 0..depth {
            let dz = vec![0.0; batch * self.hidden]; // not asked for yet
            let z = swiglu_f64(self.dims(layer, batch), &outputs[layer], &self.packed(layer), &dz).z;
            outputs.push(round(&z));
        }
        // (B, H) @ (H, 10) + (10) -> (B, 10)
        let logits = linear(&outputs[depth], &head, &self.weights["head.bias"], self.hidden);
        let (loss, dlogits) = cross_entropy(&logits, labels);

        let mut grads = Params::new();
        grads.insert("head.weight".into(), transposed_product(&dlogits, &outputs[depth], CLASSES, self.hidden));
        grads.insert("head.bias".into(), column_sums(&dlogits, CLASSES));
        let mut dz = round(&product(&dlogits, &head, CLASSES, self.hidden)); // (B, 10) @ (10, H) -> (B, H)
        for layer in (0..depth).rev() {
            let dims = self.dims(layer, batch);
            let results = swiglu_f64(dims, &outputs[layer], &self.packed(layer), &dz);
            if self.trains_layers {
                let (gate, up) = results.dwf.split_at(dims.hidden * dims.inputs);
                grads.insert(format!("layers.{layer}.gate.weight"), gate.to_vec());
                grads.insert(format!("layers.{layer}.up.weight"), up.to_vec());
            }
            dz = round(&results.dx);
        }
        grads.insert("stem.weight".into(), transposed_product(&dz, &x, self.inputs, PIXELS)); // (D, B) @ (B, 784)
        grads.insert("stem.bias".into(), column_sums(&dz, self.inputs));
        (loss, grads)
    }

    /// One step of SGD on a batch, the norm of all gradients clipped to `clip_norm` when it is given. The mean loss before it.
    pub fn step(&mut self, x: &[f64], labels: &[u8], sgd: &SgdStep, clip_norm: Option<f32>) -> f64 {
        let (loss, grads) = self.gradients(x, labels);
        let f = f64::from;
        let norm = grads.values().flatten().map(|g| g * g).sum::<f64>().sqrt();
        let scale = clip_norm.map_or(f(sgd.scale), |bound| (f(bound) / (norm + 1e-6)).min(1.0));
        for (name, grads) in grads {
            let decay = if name.ends_with(".bias") { 0.0 } else { f(sgd.weight_decay) };
            let velocities = self.velocities.entry(name.clone()).or_insert_with(|| vec![0.0; grads.len()]);
            let weights = self.weights.entry(name).or_default();
            for ((w, v), g) in weights.iter_mut().zip(velocities).zip(grads) {
                let g = scale * g + decay * *w;
                *v = f(sgd.momentum) * *v + g;
                *w -= f(sgd.lr) * if sgd.nesterov { g + f(sgd.momentum) * *v } else { *v };
            }
        }
        loss
    }

    fn dims(&self, layer: usize, batch: usize) -> Dims {
        Dims { batch, inputs: if layer == 0 { self.inputs } else { self.hidden }, hidden: self.hidden }
    }

    /// Wf of a layer, (2H, D).
    fn packed(&self, layer: usize) -> Vec<f64> {
        let half = |half: &str| self.weights[&format!("layers.{layer}.{half}.weight")].iter();
        half("gate").chain(half("up")).map(|&w| (self.rounding)(w)).collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// x W^T + b: (B, K) @ (K, N) + (N) -> (B, N).
fn linear(x: &[f64], w: &[f64], bias: &[f64], inputs: usize) -> Vec<f64> {
    let row = |x| w.chunks(inputs).zip(bias).map(move |(w, b)| dot(x, w) + b);
    x.chunks(inputs).flat_map(row).collect()
}

/// a b: (M, K) @ (K, N) -> (M, N).
fn product(a: &[f64], b: &[f64], inner: usize, cols: usize) -> Vec<f64> {
    let mut out = vec![0.0; a.len() / inner * cols];
    for (out, a) in out.chunks_mut(cols).zip(a.chunks(inner)) {
        for (a, b) in a.iter().zip(b.chunks(cols)) {
            out.iter_mut().zip(b).for_each(|(out, b)| *out += a * b);
        }
    }
    out
}

/// a^T b: (K, M)^T @ (K, N) -> (M, N).
fn transposed_product(a: &[f64], b: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    let mut out = vec![0.0; rows * cols];
    for (a, b) in a.chunks(rows).zip(b.chunks(cols)) {
        for (out, a) in out.chunks_mut(cols).zip(a) {
            out.iter_mut().zip(b).for_each(|(out, b)| *out += a * b);
        }
    }
    out
}

fn column_sums(values: &[f64], cols: usize) -> Vec<f64> {
    (0..cols).map(|col| values.iter().skip(col).step_by(cols).sum()).collect()
}

/// Mean loss of softmax and cross-entropy, and its gradient by the logits (B, 10).
fn cross_entropy(logits: &[f64], labels: &[u8]) -> (f64, Vec<f64>) {
    let batch = labels.len() as f64;
    let mut loss = 0.0;
    let mut dlogits = Vec::with_capacity(logits.len());
    for (row, &label) in logits.chunks(CLASSES).zip(labels) {
        let label = usize::from(label);
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|logit| (logit - largest).exp()).sum();
        loss += largest + sum.ln() - row[label];
        let p = row.iter().map(|logit| (logit - largest).exp() / sum).enumerate();
        dlogits.extend(p.map(|(class, p)| (p - if class == label { 1.0 } else { 0.0 }) / batch));
    }
    (loss / batch, dlogits)
}
