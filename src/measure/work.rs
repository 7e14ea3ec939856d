//! What a pass cannot do without: FLOP and bytes, whatever the implementation, and the floor of its time from them.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{record::Peaks, timer::Cache};
use crate::swiglu::{Entry, Precision, reference::Dims};

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pass {
    /// x to z, as in inference
    Forward,
    /// dz to dx; no weight gradient
    BackwardDx,
    /// dz to dx and dWf
    Backward,
    /// Forward and backward-dx: a step in which the layer does not learn
    StepDx,
    /// Forward and backward: a step in which it does
    Step,
}

impl Pass {
    /// Its name in flags and records.
    pub fn name(self) -> &'static str {
        match self {
            Pass::Forward => "forward",
            Pass::BackwardDx => "backward-dx",
            Pass::Backward => "backward",
            Pass::StepDx => "step-dx",
            Pass::Step => "step",
        }
    }

    /// What a heading calls it.
    pub fn title(self) -> &'static str {
        match self {
            Pass::Forward => "Forward: x to z",
            Pass::BackwardDx => "Backward without weight gradient: dz to dx",
            Pass::Backward => "Backward with weight gradient: dz to dx and dWf",
            Pass::StepDx => "Step without weight gradient: forward, dx",
            Pass::Step => "Step with weight gradient: forward, dx, dWf",
        }
    }

    /// Whether it makes dWf.
    pub fn makes_dwf(self) -> bool {
        matches!(self, Pass::Backward | Pass::Step)
    }

    /// Whether it begins with a forward that is timed.
    pub fn has_forward(self) -> bool {
        matches!(self, Pass::Forward | Pass::StepDx | Pass::Step)
    }

    /// Whether it has a backward.
    pub fn has_backward(self) -> bool {
        self != Pass::Forward
    }

    /// Whether the implementation has this pass: one that does not learn makes no dWf.
    pub fn exists_for(self, entry: &Entry) -> bool {
        entry.trains_weight || !self.makes_dwf()
    }

    /// Launches of own kernels and library products.
    pub fn launches(self, entry: &Entry) -> u32 {
        let of = |wanted: bool, (own, library): (u32, u32)| if wanted { own + library } else { 0 };
        of(self.has_forward(), entry.launches.forward)
            + of(self.has_backward(), entry.launches.backward_dx)
            + of(self.makes_dwf(), entry.launches.backward_dwf)
    }
}

/// FLOP and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Floating-point operations of the products.
    pub flop: f64,
    /// Bytes read and written, each operand once.
    pub bytes: f64,
}

impl Work {
    /// What `pass` cannot do without. The gate's arithmetic is left out: it is less than a thousandth.
    pub fn of(pass: Pass, dims: Dims, precision: Precision) -> Work {
        let [b, d, h] = [dims.batch, dims.inputs, dims.hidden].map(|n| n as f64);
        let element = if precision == Precision::Bf16 { 2.0 } else { 4.0 };
        let (x, z, wf) = (b * d, b * h, 2.0 * h * d);
        let mut work = Work::default();
        if pass.has_forward() {
            work.flop += 4.0 * b * d * h; // (B, D) @ (D, 2H) -> (B, 2H)
            work.bytes += x + wf + z;
        }
        if pass.has_backward() {
            work.flop += 4.0 * b * d * h; // (B, 2H) @ (2H, D) -> (B, D)
            work.bytes += z + wf + x;
        }
        if pass.makes_dwf() {
            work.flop += 4.0 * b * d * h; // (2H, B) @ (B, D) -> (2H, D)
            work.bytes += x + wf;
        }
        work.bytes *= element;
        work
    }

    /// The least time for it, in milliseconds.
    pub fn floor_ms(self, peaks: &Peaks, cache: Cache) -> f64 {
        let bandwidth = match cache {
            Cache::Cold => peaks.memory_gbytes_per_s,
            Cache::Warm => peaks.memory_gbytes_per_s.max(peaks.cache_gbytes_per_s),
        };
        (self.flop / (peaks.tflops * 1e9)).max(self.bytes / (bandwidth * 1e6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_the_slower_of_arithmetic_and_traffic() {
        let peaks = Peaks {
            device: "cpu".into(),
            precision: Precision::Fp32,
            tflops: 0.2,
            memory_gbytes_per_s: 20.0,
            cache_gbytes_per_s: 100.0,
        };
        let large = Work::of(Pass::Forward, Dims { batch: 1024, inputs: 512, hidden: 512 }, Precision::Fp32);
        assert_eq!(large.flop, 4.0 * 1024.0 * 512.0 * 512.0);
        assert_eq!(large.floor_ms(&peaks, Cache::Cold), large.flop / 0.2e9);
        let one = Work::of(Pass::Forward, Dims { batch: 1, inputs: 512, hidden: 512 }, Precision::Fp32);
        assert_eq!(one.bytes, 4.0 * (512.0 + 2.0 * 512.0 * 512.0 + 512.0));
        assert_eq!(one.floor_ms(&peaks, Cache::Cold), one.bytes / 20e6);
        assert_eq!(one.floor_ms(&peaks, Cache::Warm), one.bytes / 100e6);
    }

    #[test]
    fn a_step_is_its_forward_and_its_backward() {
        let dims = Dims { batch: 3, inputs: 5, hidden: 7 };
        let [forward, backward, step] =
            [Pass::Forward, Pass::Backward, Pass::Step].map(|pass| Work::of(pass, dims, Precision::Fp32));
        assert_eq!(step.flop, forward.flop + backward.flop);
        assert_eq!(step.bytes, forward.bytes + backward.bytes);
    }
}
