//! The learning rate of each step.

use serde::{Deserialize, Serialize};

use clap::ValueEnum;

/// How the learning rate moves over a run, after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// --lr for the first third of the run, then half a cosine down to 0
    #[default]
    FlatCosine,
    /// Half a cosine from --lr to 0 over the whole run
    Cosine,
    /// --lr all the time
    Constant,
    /// --lr times --lr-gamma after every --lr-step epochs
    Step,
}

/// Everything that decides the learning rate of a step.
#[derive(Clone, Copy, Debug)]
pub struct LearningRate {
    /// Peak.
    pub lr: f32,
    /// How it moves.
    pub schedule: Schedule,
    /// Steps over which it rises linearly from 0.
    pub warmup: u64,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// Epochs of the run.
    pub epochs: u32,
    /// Epochs between drops of the step schedule.
    pub drop_every: u32,
    /// Factor of each drop.
    pub gamma: f32,
}

impl LearningRate {
    /// The learning rate of step `step`, counted from 0 over the whole run.
    pub fn at(&self, step: u64) -> f32 {
        let lr = f64::from(self.lr);
        let total = self.steps_per_epoch * u64::from(self.epochs);
        // A warm-up longer than the run would never let the rate reach its peak; half of the run is the most.
        let warmup = self.warmup.min(total / 2);
        let after = match self.schedule {
            Schedule::Constant => lr,
            Schedule::Cosine => lr * cosine(step, warmup, total),
            Schedule::FlatCosine => lr * cosine(step, total / 3, total),
            Schedule::Step => {
                let drops = step / self.steps_per_epoch.max(1) / u64::from(self.drop_every.max(1));
                lr * f64::from(self.gamma).powi(drops.min(i32::MAX as u64) as i32)
            }
        };
        let rise = if step < warmup { (step + 1) as f64 / warmup as f64 } else { 1.0 };
        (after * rise) as f32
    }
}

/// From 1 at step `from` to 0 at step `to`, along half a cosine.
fn cosine(step: u64, from: u64, to: u64) -> f64 {
    let done = step.saturating_sub(from) as f64 / (to - from).max(1) as f64;
    0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    const COSINE: LearningRate = LearningRate {
        lr: 0.1,
        schedule: Schedule::Cosine,
        warmup: 10,
        steps_per_epoch: 50,
        epochs: 4,
        drop_every: 2,
        gamma: 0.1,
    };

    #[test]
    fn cosine_rises_linearly_peaks_and_ends_near_zero() {
        assert_eq!(COSINE.at(0), 0.01);
        assert_eq!(COSINE.at(4), 0.05);
        assert_eq!(COSINE.at(9), 0.1);
        assert_eq!(COSINE.at(10), 0.1);
        assert!((COSINE.at(105) - 0.05).abs() < 1e-7, "half way: {}", COSINE.at(105));
        assert!(COSINE.at(199) > 0.0 && COSINE.at(199) < 1e-4);
    }

    #[test]
    fn flat_cosine_holds_the_peak_for_a_third_of_the_run() {
        let flat = LearningRate { schedule: Schedule::FlatCosine, steps_per_epoch: 75, ..COSINE };
        assert_eq!((flat.at(9), flat.at(50), flat.at(100)), (0.1, 0.1, 0.1));
        assert!((flat.at(200) - 0.05).abs() < 1e-7, "two thirds: {}", flat.at(200));
        assert!(flat.at(299) < 1e-4);
    }

    #[test]
    fn step_drops_after_every_second_epoch() {
        let step = LearningRate { schedule: Schedule::Step, warmup: 0, ..COSINE };
        assert_eq!(step.at(0), 0.1);
        assert_eq!(step.at(99), 0.1);
        assert!((step.at(100) - 0.01).abs() < 1e-8);
    }

    #[test]
    fn constant_is_constant_and_a_long_warmup_takes_half_of_the_run() {
        let constant = LearningRate { schedule: Schedule::Constant, warmup: 0, ..COSINE };
        assert_eq!((constant.at(0), constant.at(199)), (0.1, 0.1));
        let long = LearningRate { warmup: 1_000_000, ..constant };
        assert_eq!((long.at(49), long.at(100)), (0.05, 0.1));
    }
}
