//! Whether whole steps of training are right: a few steps of a small network, with every term of SGD counting, against the
//! same steps in f64. What is compared is the change of each parameter over all steps, and the loss of each step.

use std::{
    borrow::Cow,
    sync::{Arc, OnceLock},
};

use super::{
    Check,
    network::{Network, Params},
};
use crate::{
    Result,
    data::{CLASSES, MEAN, PIXELS, STD, Split},
    device::{
        Device, Images, Rows, SgdStep,
        cuda::{Cuda, log::Log},
    },
    model::{
        Activations, Mlp, MlpConfig,
        checkpoint::{Array, Arrays, names},
        persistent::{Persistent, Steps},
        recorded,
    },
    rng::{self, Purpose, normal, uniform},
    swiglu::{
        Entry, Gates, LayerConfig, Pass, Precision,
        reference::{Dims, relative_error},
    },
};

/// Shapes and depths that are checked: more images than one tile holds and rows of any length; rows of whole 16 bytes, in one tile
/// and in several. D differs from H.
pub const NETWORKS: &[(Dims, usize)] = &[
    (Dims { batch: 150, inputs: 67, hidden: 101 }, 1),
    (Dims { batch: 150, inputs: 67, hidden: 101 }, 2),
    (Dims { batch: 136, inputs: 96, hidden: 64 }, 1),
    (Dims { batch: 136, inputs: 96, hidden: 64 }, 2),
    (Dims { batch: 300, inputs: 200, hidden: 136 }, 1),
];

/// The same, small enough for persistent steps: in parts of 16 columns, in parts of 32. Few images make gradients large, which clipping makes
/// small: so coarse rounding shows in the unclipped recipe, the only one that such steps take.
pub const SMALL_NETWORKS: &[(Dims, usize)] =
    &[(Dims { batch: 50, inputs: 67, hidden: 101 }, 1), (Dims { batch: 40, inputs: 392, hidden: 136 }, 1)];

/// The same on a GPU alone, in batches that begin at odd images: wide enough for kernels that pass over weights once (several ranges of
/// hidden units, more of them each than shared memory holds at a time); one that fills no tile of the weights' steps; and one with so
/// many of them that TF32 steps each beside the product of the next, in a batch of few stages.
pub const GPU_NETWORKS: &[(Dims, usize)] = &[
    (Dims { batch: 51, inputs: 2056, hidden: 584 }, 1),
    (Dims { batch: 515, inputs: 72, hidden: 136 }, 2),
    (Dims { batch: 259, inputs: 520, hidden: 6792 }, 1),
];

/// Whole batches; one more step has what is left of the images.
const FULL_STEPS: usize = 3;

/// The error that is still right: four times that of a layer.
///
/// A gradient at the stem has come through up to 2 (depth + 2) = 8 products, each as wrong as [`Precision::bound`] allows and in its
/// own way: 8^1/2, about 3 times that. The steps that follow start from weights that are wrong already; on four steps with small
/// changes that adds less than the first. Operands rounded as tf32 and bf16 round them leave the worst parameter below half of this
/// bound, and whatever is lost by a mistake is above twice that of bf16, the loosest: tests/training_mutants.rs shows both.
pub fn bound(precision: Precision) -> f64 {
    4.0 * precision.bound()
}

/// How steps are taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recipe {
    /// Name of the pass in [`Check`], and of the pass that replays it from a graph.
    pub names: [&'static str; 2],
    /// The optimiser; the learning rate is another in each step.
    pub sgd: SgdStep,
    /// Bound of the norm of all gradients.
    pub clip_norm: Option<f32>,
}

const SGD: SgdStep =
    SgdStep { lr: 0.1, momentum: 0.9, weight_decay: 0.02, nesterov: true, scale: 1.0, device_scale: false };

/// Nesterov's momentum, with SGD wherever a kernel has it in its epilogue; then plain momentum on clipped gradients, which
/// wait for the norm of all of them.
pub const RECIPES: [Recipe; 2] = [
    Recipe { names: ["steps", "replayed"], sgd: SGD, clip_norm: None },
    Recipe {
        names: ["steps-clipped", "replayed-clipped"],
        sgd: SgdStep { nesterov: false, ..SGD },
        clip_norm: Some(0.5),
    },
];

/// What a run of steps came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// All weights after the last step.
    pub weights: Arrays,
    /// The mean loss of each step.
    pub losses: Vec<f32>,
}

/// Weights and losses after the steps, by the reference.
pub type Expected = (Params, Vec<f64>);

/// A network, images and learning rates, and what the reference makes of them.
#[derive(Clone, Debug)]
pub struct TrainingCase {
    /// B, D, H.
    pub dims: Dims,
    /// SwiGLU layers.
    pub depth: usize,
    /// More images than are used, in no order.
    pub images: Split,
    /// The images of each step, one step after the other.
    pub order: Vec<u32>,
    /// The learning rate of each step.
    pub rates: Vec<f32>,
    /// Weights before the first step; no bias is zero.
    pub weights: Arrays,
    /// Momentum before the first step, about as large as the gradients.
    pub velocities: Arrays,
    /// For each recipe, with frozen layers and with layers that learn: weights and losses after the steps.
    want: [[OnceLock<Expected>; 2]; 2],
}

impl TrainingCase {
    /// Random images, weights and velocities.
    pub fn new(dims: Dims, depth: usize, seed: u64) -> TrainingCase {
        let count = FULL_STEPS * dims.batch + dims.batch / 3;
        // Three quarters of the pixels are empty, as in MNIST, so that the mean after normalisation is about zero.
        let pixels = uniform(seed, Purpose::Operand(3), count * PIXELS, 1.0);
        let images = pixels.iter().map(|p| (255.0 * (4.0 * p.abs() - 3.0).max(0.0)) as u8).collect();
        let labels = (0..count).map(|i| (i * 7 % CLASSES) as u8).collect();
        let weights: Arrays = names::expected(dims.inputs, dims.hidden, depth)
            .into_iter()
            .enumerate()
            .map(|(index, (name, shape))| {
                let scale = if shape.len() == 1 { 0.25 } else { (shape[1] as f32).powf(-0.5) };
                let data = normal(seed, Purpose::Operand(100 + index as u32), shape.iter().product(), scale);
                (name, Array { shape, data })
            })
            .collect();
        let mut case = TrainingCase {
            dims,
            depth,
            images: Split { images, labels },
            order: rng::permutation(seed, 1, count),
            rates: (0..=FULL_STEPS).map(|step| 0.2 * (1.0 + 0.5 * step as f32)).collect(),
            velocities: Arrays::new(),
            weights,
            want: Default::default(),
        };
        let (x, labels) = case.batch(&case.order[..dims.batch]);
        let (_, grads) = case.network(true, |value| value).gradients(&x, &labels);
        case.velocities = case
            .weights
            .iter()
            .zip(0..)
            .map(|((name, Array { shape, data }), index)| {
                let squares: f64 = grads[name].iter().map(|g| g * g).sum();
                let scale = (squares / data.len() as f64).sqrt() as f32;
                let data = normal(seed, Purpose::Operand(200 + index), data.len(), scale);
                (name.clone(), Array { shape: shape.clone(), data })
            })
            .collect();
        case
    }

    /// The reference of this case before its first step, with `rounding` on what products read.
    pub fn network(&self, trains_layers: bool, rounding: fn(f64) -> f64) -> Network {
        let wide = |arrays: &Arrays| {
            arrays
                .iter()
                .map(|(name, array)| (name.clone(), array.data.iter().map(|&v| f64::from(v)).collect()))
                .collect()
        };
        let Dims { inputs, hidden, .. } = self.dims;
        let (weights, velocities) = (wide(&self.weights), wide(&self.velocities));
        Network { inputs, hidden, depth: self.depth, trains_layers, weights, velocities, rounding }
    }

    /// All steps by the reference: weights and losses.
    pub fn reference(&self, recipe: &Recipe, mut network: Network) -> Expected {
        let steps = self.order.chunks(self.dims.batch).zip(&self.rates).map(|(rows, &lr)| {
            let (x, labels) = self.batch(rows);
            network.step(&x, &labels, &SgdStep { lr, ..recipe.sgd }, recipe.clip_norm)
        });
        let losses = steps.collect();
        (network.weights, losses)
    }

    /// Normalised pixels (B, 784) and labels of some images.
    fn batch(&self, rows: &[u32]) -> (Vec<f64>, Vec<u8>) {
        let (mean, deviation) = (f64::from(MEAN), f64::from(STD));
        let pixels = rows.iter().flat_map(|&row| &self.images.images[row as usize * PIXELS..][..PIXELS]);
        let x = pixels.map(|&pixel| (f64::from(pixel) / 255.0 - mean) / deviation).collect();
        (x, rows.iter().map(|&row| self.images.labels[row as usize]).collect())
    }

    /// The error of each parameter's change and of the losses, by name. A parameter that must not change is wrong without
    /// end when it does.
    pub fn errors(&self, recipe: &Recipe, trains_layers: bool, got: &Outcome) -> Vec<(String, f64)> {
        let index = RECIPES.iter().position(|known| known == recipe).unwrap_or(0);
        let (weights, losses) = self.want[index][usize::from(trains_layers)]
            .get_or_init(|| self.reference(recipe, self.network(trains_layers, |value| value)));
        let mut errors: Vec<(String, f64)> = self
            .weights
            .iter()
            .map(|(name, start)| {
                let change: Vec<f64> = weights[name].iter().zip(&start.data).map(|(w, &s)| w - f64::from(s)).collect();
                let after = got.weights.get(name).map_or(&[][..], |array| &array.data);
                let got: Vec<f32> = after.iter().zip(&start.data).map(|(after, before)| after - before).collect();
                (name.clone(), relative_error(&got, &change))
            })
            .collect();
        errors.push(("loss".into(), relative_error(&got.losses, losses)));
        errors
    }

    fn config(&self, entry: &'static Entry, device: &Device, precision: Precision, gates: Gates) -> MlpConfig {
        let Dims { inputs, hidden, .. } = self.dims;
        MlpConfig {
            entry,
            layer: LayerConfig { device: device.clone(), inputs, hidden, gates, precision },
            depth: self.depth,
        }
    }

    /// The network before its first step.
    fn model(&self, config: MlpConfig) -> Result<Mlp> {
        let mut model = Mlp::zeros(config)?;
        model.set_weights(&self.weights)?;
        model.set_velocities(&self.velocities)?;
        Ok(model)
    }

    /// All steps by an implementation; on a GPU, when `replayed`, from captured graphs.
    ///
    /// # Errors
    /// When the device fails.
    pub fn run(
        &self,
        entry: &'static Entry,
        device: &Device,
        (precision, gates): (Precision, Gates),
        recipe: &Recipe,
        replayed: bool,
    ) -> Result<Outcome> {
        let Dims { batch, inputs, .. } = self.dims;
        let mut model = self.model(self.config(entry, device, precision, gates))?;
        let images = device.images(Cow::Borrowed(&self.images))?;
        let mut acts = model.activations(batch, Pass::Training)?;
        let mut step = |acts: &mut Activations, rows: Rows<'_>, lr: f32, another: bool| -> Result<f32> {
            model.device().gather(&images, rows, &mut acts.batch)?;
            let sgd = SgdStep { lr, ..recipe.sgd };
            Ok(model.step_before(acts, &sgd, recipe.clip_norm, another)?.tally.mean_loss() as f32)
        };
        let losses = match device {
            Device::Cuda(cuda) if replayed => {
                let cuda = cuda.with_precision(precision);
                let size = (self.order.len(), batch, self.rates.len());
                let log = Arc::new(recorded::training_log(&cuda, inputs, size, recipe.clip_norm.is_some())?);
                // The rate is the log's.
                self.replay(&cuda, &log, &images, |rows, another| step(&mut acts, rows, 0.0, another).map(|_| ()))?
            }
            _ => {
                let steps = self.order.chunks(batch).zip(&self.rates);
                steps.map(|(rows, &lr)| step(&mut acts, Rows::Listed(rows), lr, false)).collect::<Result<_>>()?
            }
        };
        Ok(Outcome { weights: model.weights()?, losses })
    }

    /// All steps by the kernel that takes several in a launch: one alone, then the others. None where it cannot train this network.
    ///
    /// # Errors
    /// When the device fails.
    pub fn run_persistent(
        &self,
        entry: &'static Entry,
        cuda: &Cuda,
        (precision, gates): (Precision, Gates),
        recipe: &Recipe,
    ) -> Result<Option<Outcome>> {
        let batch = self.dims.batch;
        let device = Device::Cuda(cuda.clone());
        let config = self.config(entry, &device, precision, gates);
        if Steps::Auto.resolve(&device, &config, batch, recipe.clip_norm.is_some())? != Steps::Persistent {
            return Ok(None);
        }
        let mut model = self.model(config)?;
        let (images, steps) = (device.images(Cow::Borrowed(&self.images))?, self.order.len().div_ceil(batch));
        let log = Log::new(cuda.context(), self.rates.len(), self.order.len())?;
        let cuda = cuda.with_precision(precision);
        let persistent = Persistent::new(&cuda, &mut model, &images, (&log, &recipe.sgd, batch))?;
        if !cuda.is_planning() {
            log.begin(0, &self.order, &self.rates)?;
        }
        persistent.run(1)?;
        persistent.run(steps - 1)?;
        let losses = if cuda.is_planning() { Vec::new() } else { log.results(steps)?.0 };
        Ok(Some(Outcome { weights: model.weights()?, losses }))
    }

    /// The steps as an epoch on a GPU takes them: graphs of several whole batches and of one, replayed, and one of what is left.
    fn replay(
        &self,
        cuda: &Cuda,
        log: &Arc<Log>,
        images: &Images,
        mut step: impl FnMut(Rows<'_>, bool) -> Result<()>,
    ) -> Result<Vec<f32>> {
        let device = Device::Cuda(cuda.clone());
        let (batch, count) = (self.dims.batch, self.order.len());
        let last = Rows::At { first: FULL_STEPS * batch, count: count - FULL_STEPS * batch };
        if cuda.is_planning() {
            device.lay_out(log, images)?;
            step(Rows::Next(batch), false)?;
            step(last, false)?;
            return Ok(Vec::new());
        }
        let single = cuda.record(log, || step(Rows::Next(batch), false))?;
        let several = cuda.record(log, || {
            (2..=FULL_STEPS).try_for_each(|nth| step(Rows::Next(batch), nth < FULL_STEPS)) // whether another comes after it
        })?;
        let rest = cuda.record(log, || step(last, false))?;
        log.begin(0, &self.order, &self.rates)?;
        device.lay_out(log, images)?;
        single.replay()?;
        several.replay()?;
        rest.replay()?;
        Ok(log.results(self.rates.len())?.0)
    }
}

/// Checks whole steps of one implementation: each recipe, and on a GPU each once more from captured graphs. A [`Check`] shows the
/// parameter that uses most of the bound.
///
/// # Errors
/// When the implementation itself gives an error; a wrong result is a [`Check`] that is not `ok`.
pub fn check_training(
    entry: &'static Entry,
    device: &Device,
    precision: Precision,
    gates: Gates,
    case: &TrainingCase,
) -> Result<Vec<Check>> {
    let Dims { batch, inputs, hidden } = case.dims;
    let bound = bound(precision);
    let mut checks = Vec::new();
    for recipe in &RECIPES {
        let ways = if matches!(device, Device::Cuda(_)) { &[false, true][..] } else { &[false] };
        let mut outcomes = Vec::new();
        for &replayed in ways {
            let outcome = case.run(entry, device, (precision, gates), recipe, replayed)?;
            outcomes.push((recipe.names[usize::from(replayed)], outcome));
        }
        if let Device::Cuda(cuda) = device {
            let outcome = case.run_persistent(entry, cuda, (precision, gates), recipe)?;
            outcomes.extend(outcome.map(|outcome| ("persistent", outcome)));
        }
        for (pass, outcome) in outcomes {
            let errors = case.errors(recipe, entry.trains_weight, &outcome);
            let worst = errors.into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
            let (parameter, rel_err) = worst.unwrap_or_else(|| ("nothing".into(), f64::INFINITY));
            checks.push(Check {
                swiglu: entry.name,
                device: device.name(),
                precision,
                gates,
                pass,
                batch,
                inputs,
                hidden,
                depth: Some(case.depth),
                parameter: Some(parameter),
                rel_err,
                bound,
                ok: rel_err <= bound,
            });
        }
    }
    Ok(checks)
}
