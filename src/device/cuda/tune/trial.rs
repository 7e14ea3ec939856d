//! Trying candidates: compiled together on all cores, compared with the rules' choice, then timed in turns.

use std::{collections::HashSet, sync::Arc, time::Instant};

use cudarc::driver::result;

use super::{Problem, Wanted, pick::pick, store::Entry};
use crate::{
    Error, Kind, Result,
    device::cuda::{
        Cuda, Element, Mode,
        compile::Configuration,
        context::Memory,
        graph::Graph,
        lock,
        log::Log,
        modules::{
            Arg::{Count, Pointer},
            Grid,
        },
    },
};

/// Blocks of the comparison, and so partial sums.
const PARTIALS: usize = 512;
/// Turns that each candidate gets.
const ROUNDS: usize = 5;
/// A candidate that is slower by this factor after a turn gets no further one.
const HOPELESS: f64 = 1.3;
/// Microseconds that a graph of launches takes at least, where [`LAUNCHES`] allow it.
const SAMPLE_US: f64 = 800.0;
/// Launches of a graph.
const LAUNCHES: (usize, usize) = (4, 40);

/// Results of a kernel in device memory.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// Where they begin.
    pub pointer: u64,
    /// What they are.
    pub element: Element,
    /// How many.
    pub count: usize,
}

impl Written {
    fn bytes(self) -> usize {
        self.count * self.element.bytes()
    }
}

/// A kernel with operands of its own, to be launched with one candidate after the other.
pub trait Trial {
    /// Puts operands that the kernel changes back to what they were. Results were overwritten with NaN just before.
    ///
    /// # Errors
    /// When the device fails.
    fn reset(&mut self) -> Result<()>;

    /// Puts the kernel on the stream. It may be called any number of times after one reset.
    ///
    /// # Errors
    /// When the device fails.
    fn run(&mut self) -> Result<()>;

    /// All that it writes.
    fn results(&self) -> Vec<Written>;
}

impl Cuda {
    /// Finds the fastest candidate of each problem, and remembers it. A problem that cannot be tried (no memory, say) keeps the
    /// rules' choice, with a warning.
    pub(in super::super) fn tune(&self, wanted: &[Wanted]) {
        let begin = Instant::now();
        let modules = self.shared.modules.time();
        let peak = self.context().held_and_peak().1;
        let prepared = self.with_own_scratch(|| self.compile_candidates(wanted));
        let mut found = Vec::new();
        for wanted in wanted {
            lock(&self.shared.tuner).begin(wanted.problem, &wanted.candidates);
            let tried = || self.with_own_scratch(|| self.try_all(wanted));
            match prepared.as_ref().map_err(told_again).and_then(|()| tried()) {
                Ok(times) => found.push((wanted, times)),
                Err(error) => self.keep_rule(wanted, error),
            }
        }
        *lock(&self.shared.mode) = Mode::Eager;
        lock(&self.shared.tuner).forced = None;
        // What trying took is told as tuning, and its memory is nobody's after it.
        self.context().set_peak(peak);
        self.shared.modules.set_time(modules);
        let ms = begin.elapsed().as_secs_f64() * 1e3;
        let mut tuner = lock(&self.shared.tuner);
        for (wanted, times) in found {
            let index = pick(&times);
            let us = |index: usize| times[index].unwrap_or(f64::INFINITY) * 1e3;
            let entry = Entry {
                tile: wanted.candidates[index].clone(),
                timed: times.iter().flatten().count(),
                rule_us: us(0),
                tile_us: us(index),
                ms,
            };
            tuner.learn(wanted.problem, &wanted.candidates, index, &entry);
        }
        tuner.time.ms += ms;
    }

    /// The rules' choice stays, in this process: nothing was found out that would be worth keeping.
    fn keep_rule(&self, wanted: &Wanted, error: Error) {
        let Wanted { problem, candidates, .. } = wanted;
        let mut tuner = lock(&self.shared.tuner);
        let rule = super::chosen(*problem, candidates, 0, super::By::Rule, None);
        tuner.known.insert(*problem, (0, rule));
        tuner.store.forget(*problem, candidates); // so that the next start tries again
        let message = format!("{problem} cannot be tuned: the rules choose its tile");
        tuner.warning.get_or_insert(Error::new(Kind::Device, message).because(error));
    }

    /// Sets the candidate that launches of `problem` get.
    fn force(&self, problem: Problem, index: usize) {
        lock(&self.shared.tuner).forced = Some((problem, index));
    }

    /// Compiles everything that trying all candidates launches.
    fn compile_candidates(&self, wanted: &[Wanted]) -> Result<()> {
        let mut all: HashSet<Configuration> = HashSet::new();
        for Wanted { problem, candidates, make } in wanted {
            for index in 0..candidates.len() {
                self.force(*problem, index);
                let plan = self.plan(&mut || {
                    let mut trial = make(self, *problem)?;
                    trial.reset()?;
                    trial.run()?;
                    self.plan_comparison();
                    Ok(())
                })?;
                all.extend(plan.configurations);
            }
        }
        self.shared.modules.prepare(&all)
    }

    /// Milliseconds of each candidate whose results are right.
    fn try_all(&self, Wanted { problem, candidates, make }: &Wanted) -> Result<Vec<Option<f64>>> {
        // Either may be off by the bound.
        let (context, bound) = (self.context(), 2.0 * problem.precision.bound());
        let mut trial = make(self, *problem)?;
        let results = trial.results();
        let run = |trial: &mut Box<dyn Trial>, index: usize| -> Result<()> {
            self.force(*problem, index);
            results.iter().try_for_each(|result| self.poison(result))?;
            trial.reset()?;
            trial.run()
        };
        run(&mut trial, 0)?;
        context.synchronize()?;
        let expected = results.iter().map(|result| self.copy_of(result)).collect::<Result<Vec<Memory>>>()?;

        // How long one takes, for the length of the graphs.
        let (begin, _) = (self.event()?, trial.run()?);
        let end = self.event()?;
        end.synchronize()?;
        let once = (end.since(&begin)? * 1e3).max(1.0);
        let launches = ((SAMPLE_US / once) as usize).clamp(LAUNCHES.0, LAUNCHES.1);

        let log = Arc::new(Log::new(context, 1, 1)?);
        let mut graphs: Vec<Option<Graph>> = Vec::new();
        for index in 0..candidates.len() {
            // One that cannot be launched is out. One that is wrong is a mistake in a kernel: nothing that was tried beside it
            // is trusted.
            if run(&mut trial, index).is_err() {
                graphs.push(None);
                continue;
            }
            let error = self.differences(&results, &expected)?;
            if error.is_none_or(|error| error > bound) {
                let (tile, rule) = (&candidates[index], &candidates[0]);
                let found =
                    error.map_or("numbers that are not finite".into(), |error| format!("a difference of {error:.1e}"));
                return Err(Error::new(
                    Kind::Selftest,
                    format!("{tile} against {rule}: {found}, {bound:.0e} are allowed"),
                ));
            }
            graphs.push(Some(self.record(&log, || (0..launches).try_for_each(|_| trial.run()))?));
        }
        let mut best: Vec<Option<f64>> = vec![None; candidates.len()];
        // The first turn warms up; it counts all the same, since only the best of all turns does.
        for _ in 0..ROUNDS {
            let fastest = best.iter().flatten().copied().fold(f64::INFINITY, f64::min);
            for (index, graph) in graphs.iter().enumerate() {
                let hopeful = best[index].is_none_or(|time| index == 0 || time <= fastest * HOPELESS);
                if let Some(graph) = graph.as_ref().filter(|_| hopeful) {
                    let begin = self.event()?;
                    graph.replay()?;
                    let end = self.event()?;
                    end.synchronize()?;
                    let time = end.since(&begin)? / launches as f64;
                    best[index] = Some(best[index].map_or(time, |best| best.min(time)));
                }
            }
        }
        Ok(best)
    }

    /// Every byte 0xff: NaN in fp32 and in bf16.
    fn poison(&self, result: &Written) -> Result<()> {
        // SAFETY: a trial vouches for what it writes.
        unsafe { result::memset_d8_async(result.pointer, 0xff, result.bytes(), self.context().stream()) }
            .map_err(|cause| self.context().failed("be written to", cause))
    }

    fn copy_of(&self, result: &Written) -> Result<Memory> {
        let copy = self.context().allocate(result.bytes())?;
        // SAFETY: both are as long, and the copy ends before anything later on the stream begins.
        unsafe { result::memcpy_dtod_async(copy.pointer(), result.pointer, result.bytes(), self.context().stream()) }
            .map_err(|cause| self.context().failed("copy", cause))?;
        Ok(copy)
    }

    /// The largest relative Frobenius difference among results; none where a number is not finite.
    fn differences(&self, results: &[Written], expected: &[Memory]) -> Result<Option<f64>> {
        let partials = self.context().allocate(2 * PARTIALS * 4)?;
        let mut worst = 0.0_f64;
        for (result, expected) in results.iter().zip(expected) {
            let name = match result.element {
                Element::F32 => "sum_squares_of_difference",
                Element::Bf16 => "sum_squares_of_difference_bf16",
            };
            let args = [
                Pointer(result.pointer),
                Pointer(expected.pointer()),
                Pointer(partials.pointer()),
                Count(result.count as u64),
            ];
            let configuration = self.configuration("reduce.cu", true, &[]);
            // SAFETY: the arguments are the kernel's: two arrays as long, and two partial sums a block.
            unsafe { self.launch(&configuration, name, Grid::new(PARTIALS, 256, 0), &args)? };
            let sums = partials.read::<f32>(2 * PARTIALS)?;
            let sum = |which: usize| sums.iter().skip(which).step_by(2).map(|&sum| f64::from(sum)).sum::<f64>();
            let error = (sum(0) / sum(1).max(f64::MIN_POSITIVE)).sqrt();
            if !error.is_finite() {
                return Ok(None);
            }
            worst = worst.max(error);
        }
        Ok(Some(worst))
    }

    fn plan_comparison(&self) {
        if let Mode::Planning(plan) = &mut *lock(&self.shared.mode) {
            plan.configurations.insert(self.configuration("reduce.cu", true, &[]));
        }
    }
}

/// An error once more: its causes go with the first.
fn told_again(error: &Error) -> Error {
    Error::new(error.kind(), error.to_string())
}
