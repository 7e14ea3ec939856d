//! Initial weights, for which SGD on this network is stable.
//!
//! The network is harder to train than a plain MLP: z = silu(g) * u is a product, so a step that is too large grows
//! itself, and the input is long (784 pixels of size about 1). With PyTorch's default initialisation, lr 0.02 and momentum
//! 0.9 it diverges within the first epoch. Here weights are normal with deviation fan-in^-1/2, and less than that in the
//! SwiGLU layers, the gate's most: it begins where silu is nearly linear, so that the product grows slowly. Smaller weights
//! still would learn more slowly and end less accurate. Biases begin at zero.

use std::{panic::resume_unwind, thread};

use super::checkpoint::{Array, Arrays, names};
use crate::rng::{Purpose, normal};

/// Deviation of the gate's weights, times D^-1/2.
const GATE: f32 = 0.5;
/// Deviation of the up projection's weights, times D^-1/2.
const UP: f32 = 0.8;

/// Initial weights of the network `width` (D), `hidden` (H), `depth` under the names of a checkpoint: normal numbers,
/// each parameter from a random stream of its own.
pub fn weights(width: usize, hidden: usize, depth: usize, seed: u64) -> Arrays {
    let initial = |index: usize, name: &str, shape: &[usize]| {
        let gain = match name {
            _ if name.ends_with(".gate.weight") => GATE,
            _ if name.ends_with(".up.weight") => UP,
            _ => 1.0,
        };
        match *shape {
            [outputs, inputs] => {
                normal(seed, Purpose::Init(index as u32), outputs * inputs, gain / (inputs as f32).sqrt())
            }
            _ => vec![0.0; shape.iter().product()],
        }
    };
    // A thread each: drawing is a tenth of a GPU's start.
    thread::scope(|scope| {
        let parameters = names::expected(width, hidden, depth).into_iter().enumerate();
        let drawn: Vec<_> = parameters
            .map(|(index, (name, shape))| scope.spawn(move || (initial(index, &name, &shape), name, shape)))
            .collect();
        let joined = drawn.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        joined.map(|(data, name, shape)| (name, Array { shape, data })).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_depend_on_the_seed_and_have_the_deviation_they_should() {
        let (one, two) = (weights(64, 96, 2, 1), weights(64, 96, 2, 2));
        assert_ne!(one["stem.weight"], two["stem.weight"]);
        assert_eq!(one["stem.bias"].data, [0.0; 64]);
        for (name, fan_in, gain) in
            [("stem.weight", 784.0, 1.0), ("layers.0.gate.weight", 64.0, 0.5), ("layers.1.up.weight", 96.0, 0.8)]
        {
            let data = &one[name].data;
            let deviation = (data.iter().map(|w| w * w).sum::<f32>() / data.len() as f32).sqrt();
            let want = gain / f32::sqrt(fan_in);
            assert!((deviation / want - 1.0).abs() < 0.05, "{name}: {deviation} for {want}");
        }
        assert_ne!(one["layers.0.gate.weight"].data[..9], one["layers.0.up.weight"].data[..9]);
    }
}
