//! The network: Linear 784 -> D, SwiGLU layers, Linear H -> 10; its gradients by hand; its loss.
//!
//! `backward` reads as `forward` in reverse. Nothing is allocated inside a step: activations and their gradients are
//! buffers made once for the largest batch.

mod activations;
pub mod checkpoint;
pub mod evaluate;
pub mod init;
pub mod persistent;
pub mod recorded;
pub mod schedule;

use crate::{
    Error, Result,
    data::{CLASSES, PIXELS},
    device::{Device, Images, Rows, SgdStep, Tally, cuda::head::HeadGradient},
    swiglu::{Entry, GateUp, LayerConfig, Pass, SwiGlu, WeightGrad},
    tensor::{Param, Tensor},
};
pub use activations::Activations;
use checkpoint::{Array, Arrays};

/// Shapes of the network, and how its SwiGLU layers compute.
#[derive(Clone, Debug)]
pub struct MlpConfig {
    /// The implementation of the SwiGLU layers.
    pub entry: &'static Entry,
    /// D, H and the rest of the first layer; further layers have H inputs.
    pub layer: LayerConfig,
    /// SwiGLU layers.
    pub depth: usize,
}

/// The network and its parameters.
pub struct Mlp {
    config: MlpConfig,
    device: Device,
    stem: Linear,
    layers: Vec<Box<dyn SwiGlu>>,
    head: Linear,
}

/// A linear layer with bias: weight (out, in), bias (1, out).
#[derive(Debug)]
struct Linear {
    weight: Param,
    bias: Param,
}

impl Linear {
    fn new(device: &Device, inputs: usize, outputs: usize) -> Result<Self> {
        Ok(Linear { weight: device.param(outputs, inputs, true)?, bias: device.param(1, outputs, false)? })
    }

    fn params(&mut self) -> [&mut Param; 2] {
        [&mut self.weight, &mut self.bias]
    }
}

/// What one step came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepOutcome {
    /// Loss and hits over the batch, before the step.
    pub tally: Tally,
    /// The global norm of the gradients, where it was needed for clipping.
    pub grad_norm: Option<f64>,
}

impl Mlp {
    /// A network with initial weights drawn from `seed`: the same for every implementation.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn new(config: MlpConfig, seed: u64) -> Result<Mlp> {
        let mut mlp = Self::zeros(config)?;
        let network = &mlp.config;
        mlp.set_weights(&init::weights(network.layer.inputs, network.layer.hidden, network.depth, seed))?;
        Ok(mlp)
    }

    /// A network whose weights are all zero, for weights that come from a checkpoint.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn zeros(config: MlpConfig) -> Result<Mlp> {
        let LayerConfig { device, inputs, hidden, precision, .. } = config.layer.clone();
        precision.check(&device)?;
        let device = device.with_precision(precision);
        let layers = (0..config.depth)
            .map(|i| {
                let inputs = if i == 0 { inputs } else { hidden };
                (config.entry.new)(&LayerConfig { inputs, ..config.layer.clone() })
            })
            .collect::<Result<_>>()?;
        Ok(Mlp {
            stem: Linear::new(&device, PIXELS, inputs)?,
            head: Linear::new(&device, hidden, CLASSES)?,
            layers,
            device,
            config,
        })
    }

    /// The implementation of its SwiGLU layers.
    pub fn entry(&self) -> &'static Entry {
        self.config.entry
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Buffers for passes over up to `batch` images.
    ///
    /// # Errors
    /// When there is no memory for them.
    pub fn activations(&self, batch: usize, pass: Pass) -> Result<Activations> {
        let LayerConfig { inputs, hidden, .. } = self.config.layer;
        let outputs = || {
            let widths = std::iter::once(inputs).chain(std::iter::repeat_n(hidden, self.config.depth));
            widths.map(|width| self.device.activations(batch, width)).collect::<Result<Vec<_>>>()
        };
        let grads = match pass {
            Pass::Inference => None,
            Pass::Training => Some((outputs()?, self.device.zeros(batch, CLASSES)?)),
        };
        Ok(Activations {
            batch: self.device.batch(batch)?,
            hidden: outputs()?,
            logits: self.device.zeros(batch, CLASSES)?,
            grads,
            ahead: false,
        })
    }

    /// From the images in the batch to the logits.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward(&mut self, acts: &mut Activations, pass: Pass) -> Result<()> {
        self.trunk(acts, pass)?;
        let z = &acts.hidden[self.layers.len()];
        self.device.head(z, &self.head.weight, &self.head.bias, &mut acts.logits) // (B, H) @ (H, 10) -> (B, 10)
    }

    /// From the images in the batch to what the head reads.
    fn trunk(&mut self, acts: &mut Activations, pass: Pass) -> Result<()> {
        acts.set_rows(acts.batch.x.rows())?;
        if !std::mem::take(&mut acts.ahead) {
            let Linear { weight, bias } = &mut self.stem;
            self.device.stem(&acts.batch, (weight, bias), &mut acts.hidden[0])?; // (B, 784) @ (784, D) -> (B, D)
        }
        for (i, layer) in self.layers.iter_mut().enumerate() {
            let (before, after) = acts.hidden.split_at_mut(i + 1);
            layer.forward(&before[i], &mut after[0], pass)?; // (B, D) -> (B, H)
        }
        Ok(())
    }

    /// One step of training on the images in the batch: forward, backward, SGD.
    ///
    /// Without clipping, each weight is stepped as soon as nothing reads its old value, by the kernel that makes its
    /// gradient where there is one; with clipping the norm of all gradients comes first.
    ///
    /// # Errors
    /// When the device fails.
    pub fn step(&mut self, acts: &mut Activations, sgd: &SgdStep, clip_norm: Option<f32>) -> Result<StepOutcome> {
        self.step_before(acts, sgd, clip_norm, false)
    }

    /// The same; `another`: these activations are for another step right after it, of the batch that follows in the order of a
    /// captured epoch. The pass over the stem's weights that steps them may then make that batch's outputs too.
    ///
    /// # Errors
    /// When the device fails.
    pub fn step_before(
        &mut self,
        acts: &mut Activations,
        sgd: &SgdStep,
        clip_norm: Option<f32>,
        another: bool,
    ) -> Result<StepOutcome> {
        let mut outcome = StepOutcome::default();
        self.trunk(acts, Pass::Training)?;
        let Some((dhidden, dlogits)) = &mut acts.grads else {
            return Err(Error::shape("step: these activations are for inference"));
        };
        let (device, hidden, depth) = (&self.device, &mut acts.hidden, self.layers.len());
        let Linear { weight, bias } = &mut self.head;
        let z = &hidden[depth];
        let at_once = if clip_norm.is_none() { Some(sgd) } else { None };
        let joined = at_once.filter(|_| device.joins_head(z.rows(), z.cols()));
        // (B, H) @ (H, 10) -> (B, 10); (B, 10) @ (10, H) -> (B, H); (10, B) @ (B, H) -> (10, H)
        if joined.is_some() {
            let last = &mut self.layers[depth - 1];
            let slot = last.gate_slot(z.rows())?;
            let gradient = slot.map_or(HeadGradient::Dz(&mut dhidden[depth]), HeadGradient::Gates);
            device.head_loss_dz(z, (weight, bias), &acts.batch, gradient)?;
        } else {
            let (logits, tally) = (&mut acts.logits, &mut outcome.tally);
            device.head_loss(z, (weight, bias), &acts.batch, logits, Some(dlogits), tally)?;
            device.head_backward(z, (weight, bias), dlogits, &mut dhidden[depth], at_once)?;
        }
        let (stem, head) = (&mut self.stem, &mut self.head);
        let backward = |i: usize, layer: &mut Box<dyn SwiGlu>, hidden: &[Tensor], dhidden: &mut [Tensor]| {
            let dwf = match at_once {
                _ if !layer.entry().trains_weight => WeightGrad::Skip,
                None => WeightGrad::Buffer,
                Some(sgd) => WeightGrad::Step(sgd),
            };
            let (dx, dz) = dhidden.split_at_mut(i + 1);
            layer.backward(&hidden[i], &dz[0], Some(&mut dx[i]), dwf) // (B, H) -> (B, D), (2H, D)
        };
        let mut layers = self.layers.iter_mut().enumerate();
        let first = layers.next();
        layers.rev().try_for_each(|(i, layer)| backward(i, layer, hidden, dhidden))?;
        let rows = hidden[depth].rows();
        acts.ahead = device.join_steps(|| {
            first.map_or(Ok(()), |(i, layer)| backward(i, layer, hidden, dhidden))?;
            if let Some(sgd) = joined {
                // Nothing waits for it: it runs beside the steps of layers and stem.
                device.head_step(rows, (&mut head.weight, &mut head.bias), sgd, &mut outcome.tally)?;
            }
            let Linear { weight, bias } = stem;
            // (D, B) @ (B, 784) -> (D, 784)
            let following = if another { Some(&mut hidden[0]) } else { None };
            device.stem_backward(&dhidden[0], &acts.batch, (weight, bias), at_once, following)
        })?;

        if let Some(bound) = clip_norm {
            outcome.grad_norm = self.clipped_step(*sgd, bound)?;
        }
        Ok(outcome)
    }

    /// The step on every parameter that has a gradient, after clipping the norm of all gradients together.
    fn clipped_step(&mut self, mut sgd: SgdStep, bound: f32) -> Result<Option<f64>> {
        let device = self.device.clone();
        let mut params: Vec<&mut Param> = self.stem.params().into_iter().collect();
        params.extend(self.layers.iter_mut().flat_map(|layer| layer.params()));
        params.extend(self.head.params());
        let grads: Vec<&Tensor> = params.iter().filter_map(|param| param.grad.as_ref()).collect();
        let norm = device.clip(&grads, bound, &mut sgd)?;
        params.into_iter().try_for_each(|param| device.sgd(&sgd, param))?;
        Ok(norm)
    }

    /// Loss and hits over all `images`, in batches as large as the buffers.
    ///
    /// # Errors
    /// When the device fails.
    pub fn evaluate(&mut self, images: &Images, batch_size: usize, acts: &mut Activations) -> Result<Tally> {
        let mut tally = Tally::default();
        let rows: Vec<u32> = (0..images.len() as u32).collect();
        for rows in rows.chunks(batch_size) {
            self.evaluate_batch(images, Rows::Listed(rows), acts, &mut tally)?;
        }
        Ok(tally)
    }

    /// Loss and hits of one batch.
    ///
    /// # Errors
    /// When the device fails.
    pub fn evaluate_batch(
        &mut self,
        images: &Images,
        rows: Rows<'_>,
        acts: &mut Activations,
        tally: &mut Tally,
    ) -> Result<()> {
        self.device.gather(images, rows, &mut acts.batch)?;
        self.trunk(acts, Pass::Inference)?;
        let Linear { weight, bias } = &self.head;
        let z = &acts.hidden[self.layers.len()];
        self.device.head_loss(z, (weight, bias), &acts.batch, &mut acts.logits, None, tally)
    }

    /// Parameters, counted.
    pub fn parameters(&self) -> usize {
        let LayerConfig { inputs, hidden, .. } = self.config.layer;
        let further = (self.config.depth - 1) * 2 * hidden * hidden;
        (PIXELS + 1) * inputs + 2 * hidden * inputs + further + (hidden + 1) * CLASSES
    }

    /// All weights under the names of a checkpoint.
    ///
    /// # Errors
    /// When the device fails.
    pub fn weights(&self) -> Result<Arrays> {
        self.export(|param| Some(&param.value), |layer| layer.weights().map(Some))
    }

    /// The momentum of every weight under the names of a checkpoint; weights that do not learn have none, shown as zero.
    ///
    /// # Errors
    /// When the device fails.
    pub fn velocities(&self) -> Result<Arrays> {
        self.export(|param| param.velocity.as_ref(), |layer| layer.velocities())
    }

    fn export(
        &self,
        of_param: impl Fn(&Param) -> Option<&Tensor>,
        of_layer: impl Fn(&dyn SwiGlu) -> Result<Option<GateUp>>,
    ) -> Result<Arrays> {
        let mut arrays = Arrays::new();
        let LayerConfig { inputs, hidden, .. } = self.config.layer;
        for (name, linear) in [("stem", &self.stem), ("head", &self.head)] {
            for (kind, param) in [("weight", &linear.weight), ("bias", &linear.bias)] {
                let (rows, cols) = param.value.shape();
                let shape = if kind == "bias" { vec![cols] } else { vec![rows, cols] };
                let data = match of_param(param) {
                    Some(tensor) => self.device.download(tensor)?,
                    None => vec![0.0; rows * cols],
                };
                arrays.insert(format!("{name}.{kind}"), Array { shape, data });
            }
        }
        for (i, layer) in self.layers.iter().enumerate() {
            let shape = vec![hidden, if i == 0 { inputs } else { hidden }];
            let zeros = || vec![0.0; shape[0] * shape[1]];
            let GateUp { gate, up } =
                of_layer(layer.as_ref())?.unwrap_or_else(|| GateUp { gate: zeros(), up: zeros() });
            arrays.insert(format!("layers.{i}.gate.weight"), Array { shape: shape.clone(), data: gate });
            arrays.insert(format!("layers.{i}.up.weight"), Array { shape, data: up });
        }
        Ok(arrays)
    }

    /// Replaces all weights.
    ///
    /// # Errors
    /// When a name is missing or a shape is another.
    pub fn set_weights(&mut self, arrays: &Arrays) -> Result<()> {
        let device = self.device.clone();
        for (name, param) in self.linear_params() {
            device.write_param(param, find(arrays, &name)?)?;
        }
        for (i, layer) in self.layers.iter_mut().enumerate() {
            layer.set_weights(&gate_up(arrays, i)?)?;
        }
        Ok(())
    }

    /// Replaces the momentum of all weights that learn.
    ///
    /// # Errors
    /// When a name is missing or a shape is another.
    pub fn set_velocities(&mut self, arrays: &Arrays) -> Result<()> {
        let device = self.device.clone();
        for (name, param) in self.linear_params() {
            let (rows, cols) = param.value.shape();
            param.velocity = Some(device.upload(rows, cols, find(arrays, &name)?)?);
        }
        for (i, layer) in self.layers.iter_mut().enumerate() {
            if layer.entry().trains_weight {
                layer.set_velocities(&gate_up(arrays, i)?)?;
            }
        }
        Ok(())
    }

    fn linear_params(&mut self) -> [(String, &mut Param); 4] {
        let (stem, head) = (&mut self.stem, &mut self.head);
        [
            ("stem.weight".into(), &mut stem.weight),
            ("stem.bias".into(), &mut stem.bias),
            ("head.weight".into(), &mut head.weight),
            ("head.bias".into(), &mut head.bias),
        ]
    }
}

fn find<'a>(arrays: &'a Arrays, name: &str) -> Result<&'a [f32]> {
    match arrays.get(name) {
        Some(array) => Ok(&array.data),
        None => Err(Error::shape(format!("the weights lack {name}"))),
    }
}

fn gate_up(arrays: &Arrays, layer: usize) -> Result<GateUp> {
    Ok(GateUp {
        gate: find(arrays, &format!("layers.{layer}.gate.weight"))?.to_vec(),
        up: find(arrays, &format!("layers.{layer}.up.weight"))?.to_vec(),
    })
}
