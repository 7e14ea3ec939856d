//! Cases of the microbenchmark. The implementations of a shape are made and checked together, then timed in turns, so that
//! what else the machine does hits all of them alike.

use std::time::Duration;

use super::{
    check::gates_of,
    record::{Case, Peaks},
    sampled::Sample,
    timer::{self, Budget, Cache, quantile},
    work::{Pass, Work},
};
use crate::{
    Result,
    device::{Device, cuda::tune::Chosen},
    swiglu::{
        self, Entry, GateUp, Gates, LayerConfig, Precision, SwiGlu, WeightGrad,
        reference::{Dims, Operands},
    },
    tensor::Tensor,
};

/// Turns that each implementation gets.
const ROUNDS: usize = 3;
/// Of one turn.
const BUDGET: Budget = Budget { warm_up: 1, at_least: 4, at_most: 40, time: Duration::from_millis(70) };

/// Everything that is timed at one shape in one precision.
pub struct Bench {
    device: Device,
    dims: Dims,
    precision: Precision,
    seed: u64,
    x: Tensor,
    dz: Tensor,
    runners: Vec<Runner>,
}

/// One implementation with its layer and what the check found of it.
struct Runner {
    entry: &'static Entry,
    gates: Gates,
    layer: Box<dyn SwiGlu>,
    z: Tensor,
    dx: Tensor,
    /// Errors of z, dx and dWf.
    errors: [f64; 3],
    saved_bytes: usize,
    /// On a GPU: the tiles of its own kernels.
    tiles: Vec<Chosen>,
}

impl Bench {
    /// Makes the layers of `entries` with each of `gates` that they have, and checks every one of them.
    ///
    /// # Errors
    /// When there is no memory for them, or an implementation gives an error.
    pub fn new(
        device: &Device,
        entries: &[&'static Entry],
        gates: &[Gates],
        dims: Dims,
        precision: Precision,
        seed: u64,
    ) -> Result<Bench> {
        let device = &device.with_precision(precision);
        let operands = Operands::random(dims, seed).rounded(precision);
        let sample = Sample::new(dims, &operands);
        let x = device.upload_activations(dims.batch, dims.inputs, &operands.x)?;
        let dz = device.upload_activations(dims.batch, dims.hidden, &operands.dz)?;
        let mut runners = Vec::new();
        for &entry in entries {
            for &gates in gates_of(entry).iter().filter(|mode| !entry.can_recompute || gates.contains(mode)) {
                let config =
                    LayerConfig { device: device.clone(), inputs: dims.inputs, hidden: dims.hidden, gates, precision };
                let mut layer = (entry.new)(&config)?;
                layer.set_weights(&GateUp::unpack(&operands.wf))?;
                let poisoned = |cols| device.upload_activations(dims.batch, cols, &vec![f32::NAN; dims.batch * cols]);
                let (z, dx) = (poisoned(dims.hidden)?, poisoned(dims.inputs)?);
                let mut runner =
                    Runner { entry, gates, layer, z, dx, errors: [0.0; 3], saved_bytes: 0, tiles: Vec::new() };
                runner.tune(device, &x, &dz)?;
                runner.check(device, &x, &dz, &sample)?;
                runners.push(runner);
            }
        }
        Ok(Bench { device: device.clone(), dims, precision, seed, x, dz, runners })
    }

    /// Times `pass` of every implementation that has it and is right; a wrong one gets a record without a time.
    ///
    /// # Errors
    /// When an implementation gives an error.
    pub fn time(&mut self, pass: Pass, cache: Cache, peaks: &Peaks) -> Result<Vec<Case>> {
        let Bench { device, x, dz, runners, .. } = self;
        let mut timed: Vec<(&mut Runner, Vec<f64>)> =
            runners.iter_mut().filter(|r| pass.exists_for(r.entry)).map(|r| (r, Vec::new())).collect();
        for _ in 0..ROUNDS {
            for (runner, times) in &mut timed {
                if runner.error(pass) <= self.precision.bound() {
                    times.extend(runner.samples(device, pass, cache, x, dz)?);
                }
            }
        }
        let (dims, precision, seed) = (self.dims, self.precision, self.seed);
        let work = Work::of(pass, dims, precision);
        Ok(timed
            .into_iter()
            .map(|(runner, times)| {
                let error = runner.error(pass);
                let median_ms = quantile(&times, 0.5);
                Case {
                    swiglu: runner.entry.name.into(),
                    device: device.name(),
                    gpu: device.name().starts_with("cuda").then(|| device.model_name()).flatten(),
                    precision,
                    pass,
                    gates: runner.gates,
                    batch: dims.batch,
                    inputs: dims.inputs,
                    hidden: dims.hidden,
                    cache,
                    median_ms,
                    p10_ms: quantile(&times, 0.1),
                    p90_ms: quantile(&times, 0.9),
                    samples: times.len(),
                    tflops: median_ms.map(|ms| work.flop / ms / 1e9),
                    gbytes_per_s: median_ms.map(|ms| work.bytes / ms / 1e6),
                    floor_ms: work.floor_ms(peaks, cache),
                    rel_err: error.is_finite().then_some(error),
                    bound: precision.bound(),
                    ok: error <= precision.bound(),
                    launches: pass.launches(runner.entry),
                    saved_bytes: runner.saved_bytes,
                    trains_wf: runner.entry.trains_weight,
                    seed,
                    tiles: runner.tiles.clone(),
                }
            })
            .collect())
    }
}

impl Runner {
    /// On a GPU: finds the fastest tiles for every pass, where that is asked for, so that what is checked is what is timed.
    fn tune(&mut self, device: &Device, x: &Tensor, dz: &Tensor) -> Result<()> {
        let Device::Cuda(cuda) = device else { return Ok(()) };
        let Runner { layer, z, dx, .. } = self;
        let dwf = if self.entry.trains_weight { WeightGrad::Buffer } else { WeightGrad::Skip };
        self.tiles = cuda.tune(|| {
            layer.forward(x, z, swiglu::Pass::Inference)?;
            layer.forward(x, z, swiglu::Pass::Training)?;
            layer.backward(x, dz, Some(dx), dwf)
        })?;
        Ok(())
    }

    /// One whole step, compared with the reference.
    fn check(&mut self, device: &Device, x: &Tensor, dz: &Tensor, sample: &Sample) -> Result<()> {
        self.layer.forward(x, &mut self.z, swiglu::Pass::Inference)?;
        let inference = sample.z_error(&device.download(&self.z)?);
        let poison = vec![f32::NAN; self.z.len()];
        device.write(&mut self.z, &poison)?;
        self.layer.forward(x, &mut self.z, swiglu::Pass::Training)?;
        self.saved_bytes = self.layer.saved_bytes();
        let dwf = if self.entry.trains_weight { WeightGrad::Buffer } else { WeightGrad::Skip };
        self.layer.backward(x, dz, Some(&mut self.dx), dwf)?;
        let z = sample.z_error(&device.download(&self.z)?).max(inference);
        let dx = sample.dx_error(&device.download(&self.dx)?);
        let dwf = match self.layer.gradients()? {
            Some(gradients) => sample.dwf_error(&gradients.packed()),
            None if self.entry.trains_weight => f64::INFINITY,
            None => 0.0,
        };
        self.errors = [z, dx, dwf];
        Ok(())
    }

    /// The largest error among what `pass` makes.
    fn error(&self, pass: Pass) -> f64 {
        let [z, dx, dwf] = self.errors;
        let of = |wanted: bool, error: f64| if wanted { error } else { 0.0 };
        of(pass.has_forward(), z).max(of(pass.has_backward(), dx)).max(of(pass.makes_dwf(), dwf))
    }

    fn samples(&mut self, device: &Device, pass: Pass, cache: Cache, x: &Tensor, dz: &Tensor) -> Result<Vec<f64>> {
        let dwf = if pass.makes_dwf() { WeightGrad::Buffer } else { WeightGrad::Skip };
        let Runner { layer, z, dx, .. } = self;
        match pass {
            Pass::Forward => {
                timer::samples(device, cache, BUDGET, None, &mut || layer.forward(x, z, swiglu::Pass::Inference))
            }
            Pass::StepDx | Pass::Step => timer::samples(device, cache, BUDGET, None, &mut || {
                layer.forward(x, z, swiglu::Pass::Training)?;
                layer.backward(x, dz, Some(dx), dwf)
            }),
            Pass::BackwardDx | Pass::Backward => {
                // A backward uses its forward up: each needs one before it, which is not timed.
                let layer = std::sync::Mutex::new(layer);
                let locked = || layer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                timer::samples(
                    device,
                    cache,
                    BUDGET,
                    Some(&mut || locked().forward(x, z, swiglu::Pass::Training)),
                    &mut || locked().backward(x, dz, Some(dx), dwf),
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swiglu::fused::FUSED_TRITON_GRAD;

    #[test]
    fn a_wrong_case_has_an_error_and_no_time() {
        let device = Device::open("cpu", Some(1)).unwrap().0;
        let peaks = Peaks {
            device: "cpu".into(),
            precision: Precision::Fp32,
            tflops: 1.0,
            memory_gbytes_per_s: 1.0,
            cache_gbytes_per_s: 1.0,
        };
        let dims = Dims { batch: 3, inputs: 5, hidden: 7 };
        let mut bench = Bench::new(&device, &[&FUSED_TRITON_GRAD], &[Gates::Save], dims, Precision::Fp32, 1).unwrap();
        let right = bench.time(Pass::Step, Cache::Warm, &peaks).unwrap();
        assert!(right[0].ok && right[0].median_ms.is_some(), "{right:?}");
        assert_eq!(right[0].launches, 3);
        bench.runners[0].errors[2] = 0.5;
        let wrong = &bench.time(Pass::Step, Cache::Warm, &peaks).unwrap()[0];
        assert_eq!((wrong.ok, wrong.median_ms, wrong.samples, wrong.rel_err), (false, None, 0, Some(0.5)));
        assert!(bench.time(Pass::Forward, Cache::Warm, &peaks).unwrap()[0].ok, "what is right is timed");
    }
}
