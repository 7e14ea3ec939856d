//! Whether an implementation is right: every pass against the f64 reference, at ragged shapes, with outputs poisoned
//! with NaN before they are written.
//!
//! | module | what it holds |
//! |---|---|
//! | this one | a layer's passes |
//! | [`training`] | whole steps of training |
//! | [`network`] | their reference |

pub mod network;
pub mod training;

use serde::Serialize;

use crate::{
    Error, Result,
    device::{Device, SgdStep},
    swiglu::{
        Entry, GateUp, Gates, LayerConfig, Pass, Precision, SwiGlu, WeightGrad,
        reference::{self, Dims, Operands, Results, relative_error},
    },
    tensor::Tensor,
};

/// Shapes that catch what goes wrong: one of everything, edges that no tile divides, several tiles in each dimension,
/// D different from H, more images than one block holds.
pub const SHAPES: &[Dims] = &[
    dims(1, 1, 1),
    dims(2, 3, 5),
    dims(1, 123, 431),
    dims(127, 129, 65),
    dims(64, 784, 128),
    dims(200, 123, 431),
    dims(33, 1031, 37),
    dims(600, 65, 50),
    dims(64, 512, 512),
    // Whole 16-byte rows, which Hopper's kernels ask for, and edges in every dimension.
    dims(1, 24, 8),
    dims(70, 136, 72),
    dims(203, 520, 424),
];

/// Beside those on a GPU: more tiles than multiprocessors, in the forward and in dx, so that blocks that stay take several; a small
/// batch with weights that let TF32's dWf run beside dx; and bf16's sums in halves, in the forward and in dx.
pub const LARGE_SHAPES: &[Dims] =
    &[dims(2310, 72, 1032), dims(2310, 2056, 72), dims(50, 1032, 2056), dims(50, 2056, 520), dims(203, 2056, 2056)];

const fn dims(batch: usize, inputs: usize, hidden: usize) -> Dims {
    Dims { batch, inputs, hidden }
}

/// The step of SGD that checks use: every term counts.
const STEP: SgdStep =
    SgdStep { lr: 0.1, momentum: 0.9, weight_decay: 0.01, nesterov: true, scale: 0.5, device_scale: false };

/// One comparison with the reference.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Name of the implementation.
    pub swiglu: &'static str,
    /// Where it ran.
    pub device: String,
    /// The numbers of its products.
    pub precision: Precision,
    /// Whether g and u were kept.
    pub gates: Gates,
    /// What was compared: `forward`, `inference`, `backward-dx`, `backward-dwf`, `sgd-step`, `frozen`; of whole steps of training
    /// `steps`, `steps-clipped`, `replayed`, `replayed-clipped`.
    pub pass: &'static str,
    /// Images.
    #[serde(rename = "B")]
    pub batch: usize,
    /// Inputs.
    #[serde(rename = "D")]
    pub inputs: usize,
    /// Hidden.
    #[serde(rename = "H")]
    pub hidden: usize,
    /// SwiGLU layers, of whole steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Of whole steps: the parameter whose change has the largest error, or `loss`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameter: Option<String>,
    /// Relative Frobenius error.
    pub rel_err: f64,
    /// Largest error that is still right.
    pub bound: f64,
    /// Whether it is right.
    pub ok: bool,
}

/// A shape with its operands and what the reference makes of them, shared by every implementation.
#[derive(Clone, Debug)]
pub struct Case {
    dims: Dims,
    operands: Operands,
    want: Results,
}

impl Case {
    /// Random operands, and the reference's results.
    pub fn new(dims: Dims, seed: u64) -> Case {
        Case::in_precision(dims, seed, Precision::Fp32)
    }

    /// Random operands as this precision keeps them, and the reference's results for just these numbers: an error is then
    /// one of the arithmetic, not of the rounding of what it was given.
    pub fn in_precision(dims: Dims, seed: u64, precision: Precision) -> Case {
        let operands = Operands::random(dims, seed).rounded(precision);
        Case::of(dims, operands)
    }

    /// These operands, and the reference's results.
    pub fn of(dims: Dims, operands: Operands) -> Case {
        let want = reference::swiglu(dims, &operands);
        Case { dims, operands, want }
    }

    /// Its shape.
    pub fn dims(&self) -> Dims {
        self.dims
    }
}

/// The ways of keeping gates that an implementation has.
pub fn gates_of(entry: &Entry) -> &'static [Gates] {
    if entry.can_recompute { &[Gates::Save, Gates::Recompute] } else { &[Gates::Save] }
}

/// Checks every pass of one implementation on one case.
///
/// # Errors
/// When the implementation itself gives an error; a wrong result is a [`Check`] that is not `ok`.
pub fn check_layer(
    entry: &Entry,
    device: &Device,
    precision: Precision,
    gates: Gates,
    case: &Case,
) -> Result<Vec<Check>> {
    let Dims { batch, inputs, hidden } = case.dims;
    let device = &device.with_precision(precision);
    let config = LayerConfig { device: device.clone(), inputs, hidden, gates, precision };
    let mut layer = (entry.new)(&config)?;
    let weights = GateUp::unpack(&case.operands.wf);
    layer.set_weights(&weights)?;

    let x = device.upload_activations(batch, inputs, &case.operands.x)?;
    let dz = device.upload_activations(batch, hidden, &case.operands.dz)?;
    let (mut z, mut dx) = (poisoned(device, batch, hidden)?, poisoned(device, batch, inputs)?);
    let mut checks = Vec::new();
    let mut note = |pass, rel_err: f64, bound| {
        let device = device.name();
        let ok = rel_err <= bound;
        checks.push(Check {
            swiglu: entry.name,
            device,
            precision,
            gates,
            pass,
            batch,
            inputs,
            hidden,
            depth: None,
            parameter: None,
            rel_err,
            bound,
            ok,
        });
    };
    let bound = precision.bound();

    layer.forward(&x, &mut z, Pass::Inference)?;
    note("inference", relative_error(&device.download(&z)?, &case.want.z), bound);

    z = poisoned(device, batch, hidden)?;
    layer.forward(&x, &mut z, Pass::Training)?;
    note("forward", relative_error(&device.download(&z)?, &case.want.z), bound);

    let dwf = if entry.trains_weight { WeightGrad::Buffer } else { WeightGrad::Skip };
    layer.backward(&x, &dz, Some(&mut dx), dwf)?;
    note("backward-dx", relative_error(&device.download(&dx)?, &case.want.dx), bound);

    if !entry.trains_weight {
        // Frozen: not small changes, none at all.
        let same = layer.weights()? == weights;
        note("frozen", if same { 0.0 } else { f64::INFINITY }, 0.0);
        return Ok(checks);
    }
    let gradients =
        layer.gradients()?.ok_or_else(|| Error::shape(format!("{}: no gradient was written", entry.name)))?;
    note("backward-dwf", relative_error(&gradients.packed(), &case.want.dwf), bound);
    note("sgd-step", step_error(layer.as_mut(), device, case, &x, &dz)?, bound);
    Ok(checks)
}

/// Two steps of SGD applied by the backward itself, against the same steps in f64. The error is that of the change of
/// the weights, not of the weights, of which the change is a small part.
fn step_error(layer: &mut dyn SwiGlu, device: &Device, case: &Case, x: &Tensor, dz: &Tensor) -> Result<f64> {
    let Dims { batch, inputs, hidden } = case.dims;
    let start = &case.operands.wf;
    // A velocity that is there already, so that momentum is seen in the first step.
    let velocity: Vec<f32> = start.iter().map(|w| 0.5 - w).collect();
    layer.set_velocities(&GateUp::unpack(&velocity))?;
    let mut z = poisoned(device, batch, hidden)?;
    let mut dx = poisoned(device, batch, inputs)?;
    layer.forward(x, &mut z, Pass::Training)?;
    layer.backward(x, dz, Some(&mut dx), WeightGrad::Step(&STEP))?;

    let f = f64::from;
    let want = start.iter().zip(&velocity).zip(&case.want.dwf).map(|((&w, &v), &dwf)| {
        let g = f(STEP.scale) * dwf + f(STEP.weight_decay) * f(w);
        let v = f(STEP.momentum) * f(v) + g;
        -f(STEP.lr) * (g + f(STEP.momentum) * v)
    });
    let want: Vec<f64> = want.collect();
    let got: Vec<f32> = layer.weights()?.packed().iter().zip(start).map(|(after, before)| after - before).collect();
    // The difference of two fp32 weights carries their rounding, half a unit in the last place each.
    let rounding = relative_rounding(start, &want);
    Ok((relative_error(&got, &want) - rounding).max(0.0))
}

/// The error that rounding the new weights to fp32 puts into their change.
fn relative_rounding(weights: &[f32], change: &[f64]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let weights = norm(&mut weights.iter().zip(change).map(|(&w, &c)| f64::from(w).abs() + c.abs()));
    weights * f64::from(f32::EPSILON) / norm(&mut change.iter().copied())
}

fn poisoned(device: &Device, rows: usize, cols: usize) -> Result<Tensor> {
    device.upload_activations(rows, cols, &vec![f32::NAN; rows * cols])
}
