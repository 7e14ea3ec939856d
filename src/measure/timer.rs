//! Samples of a call's time on a device. The one place that knows how a device is timed.
//!
//! On the CPU: wall time of single calls; calls too short for the clock are timed several at a time. `Cache::Cold` streams
//! over a buffer larger than the last cache before each call. A GPU is timed by events around replays of a graph.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::{
    Result,
    device::{
        Device,
        cpu::{Cpu, SharedMut},
        cuda::{Cuda, timing::L2},
    },
};

/// What is in the caches when a call begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cache {
    /// What the call before left
    #[default]
    Warm,
    /// Nothing of use: flushed before each call
    Cold,
}

impl Cache {
    /// Its name in flags and records.
    pub fn name(self) -> &'static str {
        match self {
            Cache::Warm => "warm",
            Cache::Cold => "cold",
        }
    }
}

/// How long a case is sampled.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Calls before the first sample.
    pub warm_up: usize,
    /// At least so many samples.
    pub at_least: usize,
    /// At most so many.
    pub at_most: usize,
    /// No new sample after this, beyond `at_least`.
    pub time: Duration,
}

/// A call that can fail.
pub type Call<'a> = &'a mut (dyn FnMut() -> Result<()> + Send);

/// Times `call` on `device`, in milliseconds a call; `prepare` runs before each call and is not timed.
///
/// # Errors
/// What the calls give.
pub fn samples(
    device: &Device,
    cache: Cache,
    budget: Budget,
    prepare: Option<Call<'_>>,
    call: Call<'_>,
) -> Result<Vec<f64>> {
    match device {
        Device::Cpu(cpu) => wall_clock(cpu, cache, budget, prepare, call),
        Device::Cuda(cuda) => replays(cuda, cache, budget, prepare, call),
    }
}

/// Device time. What has to happen before each call is captured with it, timed alone as well, and taken off: sample by
/// sample, one right after the other.
fn replays(cuda: &Cuda, cache: Cache, budget: Budget, prepare: Option<Call<'_>>, call: Call<'_>) -> Result<Vec<f64>> {
    let l2 = match cache {
        Cache::Warm => L2::Warm,
        Cache::Cold => L2::Cold,
    };
    let Some(prepare) = prepare else {
        let timed = cuda.timed(l2, call)?;
        return within(budget, || timed.sample());
    };
    let alone = cuda.timed(l2, &mut *prepare)?;
    let both = cuda.timed(l2, || {
        prepare()?;
        call()
    })?;
    within(budget, || Ok((both.sample()? - alone.sample()?).max(0.0)))
}

/// Samples within a budget, in ms.
fn within(budget: Budget, mut sample: impl FnMut() -> Result<f64>) -> Result<Vec<f64>> {
    for _ in 0..budget.warm_up {
        sample()?;
    }
    let begin = Instant::now();
    let mut times = Vec::new();
    while times.len() < budget.at_least || (times.len() < budget.at_most && begin.elapsed() < budget.time) {
        times.push(sample()?);
    }
    Ok(times)
}

/// Calls shorter than this are timed several at a time.
const SHORT: Duration = Duration::from_micros(200);

fn wall_clock(
    cpu: &Cpu,
    cache: Cache,
    budget: Budget,
    mut prepare: Option<Call<'_>>,
    call: Call<'_>,
) -> Result<Vec<f64>> {
    // Several calls in a row can be timed only where nothing has to happen between them.
    let alone = prepare.is_none() && cache == Cache::Warm;
    let mut flusher = (cache == Cache::Cold).then(Flusher::new);
    let mut once = |repeat: u32| {
        if let Some(prepare) = &mut prepare {
            prepare()?;
        }
        if let Some(flusher) = &mut flusher {
            flusher.flush(cpu);
        }
        let begin = Instant::now();
        for _ in 0..repeat {
            call()?;
        }
        Ok::<_, crate::Error>(begin.elapsed() / repeat)
    };
    let mut shortest = Duration::MAX;
    for _ in 0..budget.warm_up.max(1) {
        shortest = shortest.min(once(1)?);
    }
    let repeat = if alone { (SHORT.as_nanos() / shortest.as_nanos().max(1)).clamp(1, 1000) as u32 } else { 1 };
    // The calls above were the warm-up.
    let rest = Budget { warm_up: 0, ..budget };
    within(rest, || Ok(once(repeat)?.as_secs_f64() * 1e3))
}

/// A buffer that no cache holds, and a pass over it that leaves nothing else in any.
pub(super) struct Flusher(Vec<f32>);

impl Flusher {
    pub(super) fn new() -> Flusher {
        Flusher(vec![1.0; 2 * last_cache_bytes() / size_of::<f32>()])
    }

    /// Each thread writes its part: private caches are flushed too.
    fn flush(&mut self, cpu: &Cpu) {
        let (len, part) = (self.0.len(), self.0.len().div_ceil(cpu.threads()));
        let words = SharedMut::new(&mut self.0);
        cpu.for_each(cpu.threads(), |thread| {
            let first = len.min(thread * part);
            // SAFETY: each part belongs to one task.
            let part = unsafe { words.slice(first, part.min(len - first)) };
            part.iter_mut().for_each(|word| *word = 2.0 - *word);
        });
        black_box(&self.0);
    }
}

/// Bytes of the largest cache, as Linux tells; 64 MiB elsewhere.
pub(super) fn last_cache_bytes() -> usize {
    let size = |index: usize| {
        let text = std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size")).ok()?;
        let text = text.trim();
        let (digits, unit) = text.split_at(text.len().checked_sub(1)?);
        let factor = if unit == "M" { 1 << 20 } else { 1 << 10 };
        digits.parse::<usize>().ok()?.checked_mul(factor)
    };
    (0..5).filter_map(size).max().unwrap_or(64 << 20).clamp(8 << 20, 512 << 20)
}

/// The value below which a share of the samples lies; none of no samples.
pub fn quantile(samples: &[f64], share: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = share * sorted.len().checked_sub(1)? as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    Some(low + (high - low) * at.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_samples() {
        let samples = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(quantile(&samples, 0.5), Some(2.5));
        assert_eq!((quantile(&samples, 0.0), quantile(&samples, 1.0)), (Some(1.0), Some(4.0)));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn what_is_prepared_is_not_timed_and_comes_before_every_call() {
        let device = Device::open("cpu", Some(1)).unwrap().0;
        let order = std::sync::Mutex::new(Vec::new());
        let budget = Budget { warm_up: 1, at_least: 3, at_most: 3, time: Duration::ZERO };
        let mut prepare = || {
            std::thread::sleep(Duration::from_millis(20));
            order.lock().unwrap().push('p');
            Ok(())
        };
        let mut call = || {
            order.lock().unwrap().push('c');
            Ok(())
        };
        let times = samples(&device, Cache::Cold, budget, Some(&mut prepare), &mut call).unwrap();
        assert_eq!(order.lock().unwrap().iter().collect::<String>(), "pcpcpcpc");
        assert!(times.len() == 3 && times.iter().all(|&ms| ms < 10.0), "{times:?}");
    }
}
