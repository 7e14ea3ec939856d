//! Trying candidates: compiled together on all cores, compared with the rules' choice, then timed in turns.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cudarc::driver::result;

use super::{
    By, Met, Problem, chosen,
    pick::{is_quiet, pick},
    store::Entry,
};
use crate::{
    Error, Kind, Result,
    device::cuda::{
        Cuda, Element,
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

/// What compiling the candidates of a problem may take: one whose kernel is not begun by then is not tried. On two cores that is
/// a handful of them.
const COMPILING: Duration = Duration::from_millis(1500);
/// The file of the comparison.
const COMPARISON: &str = "reduce.cu";
/// Its blocks, and so partial sums.
const PARTIALS: usize = 512;
/// Turns that each candidate gets.
const ROUNDS: usize = 5;
/// A candidate that is slower by this factor after a turn gets no further one.
const HOPELESS: f64 = 1.3;
/// Microseconds that a graph of launches takes at least, where [`LAUNCHES`] allow it.
const SAMPLE_US: f64 = 800.0;
/// Launches of a graph.
const LAUNCHES: (usize, usize) = (1, 40);
/// What timing the candidates of a problem may take: the turn in which it is over is the last. Everyone gets one.
const TIMING: Duration = Duration::from_millis(500);

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

/// What launching each candidate of a problem takes of kernels, in their order.
type Kernels = Vec<Vec<Configuration>>;

impl Cuda {
    /// Finds the fastest candidate of each problem, and remembers it. A problem that cannot be tried (no memory, say) keeps the
    /// rules' choice, with a warning.
    pub(super) fn try_problems(&self, open: &[&Met]) {
        let begin = Instant::now();
        let modules = self.shared.modules.time();
        let peak = self.context().held_and_peak().1;
        let planned: Vec<Result<Kernels>> =
            open.iter().map(|met| self.with_own_scratch(|| self.kernels_of(met))).collect();
        let compiled = self.compile(&planned, begin + COMPILING * open.len() as u32);
        let compiling = begin.elapsed() / open.len() as u32;
        for (met, planned) in open.iter().zip(planned) {
            let begin = Instant::now();
            let Met { problem, candidates, .. } = met;
            lock(&self.shared.tuner).begin(*problem, candidates);
            let tried = planned.and_then(|kernels| {
                compiled.as_ref().map_err(|error| Error::new(error.kind(), error.to_string()))?;
                self.with_own_scratch(|| self.try_all(met, &kernels))
            });
            lock(&self.shared.tuner).forced = None;
            match tried {
                Ok(times) => self.learn(met, &times, compiling + begin.elapsed()),
                Err(error) => self.keep_rule(met, error),
            }
        }
        // What trying took is told as tuning, and its memory is nobody's after it.
        self.context().set_peak(peak);
        self.shared.modules.set_time(modules);
        lock(&self.shared.tuner).time.ms += begin.elapsed().as_secs_f64() * 1e3;
    }

    /// Keeps the fastest of `times`.
    fn learn(&self, Met { problem, candidates, .. }: &Met, times: &[Option<f64>], took: Duration) {
        let index = pick(times);
        let us = |index: usize| times[index].unwrap_or(f64::INFINITY) * 1e3;
        let entry = Entry {
            tile: candidates[index].clone(),
            timed: times.iter().flatten().count(),
            rule_us: us(0),
            tile_us: us(index),
            ms: took.as_secs_f64() * 1e3,
        };
        lock(&self.shared.tuner).learn(*problem, candidates, index, &entry);
    }

    /// The rules' choice stays, in this process: nothing was found out that would be worth keeping. Where a candidate broke the
    /// device, so that nothing more can run on it, the note of [`Tuner::begin`] stays too, lest the next start break it again.
    fn keep_rule(&self, Met { problem, candidates, .. }: &Met, error: Error) {
        let is_well = self.context().synchronize().is_ok();
        let mut tuner = lock(&self.shared.tuner);
        tuner.known.insert(*problem, (0, chosen(*problem, candidates, 0, By::Rule, None)));
        if is_well {
            tuner.store.forget(*problem, candidates); // so that the next start tries again
        }
        let message = format!("{problem} cannot be tuned: the rules choose its tile");
        tuner.warnings.push_back(Error::new(Kind::Device, message).because(error));
    }

    /// Sets the candidate that launches of `problem` get.
    fn force(&self, problem: Problem, index: usize) {
        lock(&self.shared.tuner).forced = Some((problem, index));
    }

    /// The kernels that trying each candidate launches. Nothing runs.
    fn kernels_of(&self, Met { problem, candidates, make }: &Met) -> Result<Kernels> {
        let mut trial = None;
        let kernels = (0..candidates.len()).map(|index| {
            self.force(*problem, index);
            let plan = self.plan(|| {
                let trial = match &mut trial {
                    Some(trial) => trial,
                    empty => empty.insert(make(self, *problem)?),
                };
                trial.reset()?;
                trial.run()
            })?;
            let comparison = self.configuration(COMPARISON, true, &[]);
            Ok(plan.configurations.into_iter().chain([comparison]).collect())
        });
        let kernels = kernels.collect();
        lock(&self.shared.tuner).forced = None;
        kernels
    }

    /// Compiles all that trying launches: first what the rules' choices do, then, until `deadline`, the others in turns.
    fn compile(&self, planned: &[Result<Kernels>], deadline: Instant) -> Result<()> {
        let nth = |index: usize| planned.iter().flatten().filter_map(move |kernels| kernels.get(index)).flatten();
        let most = planned.iter().flatten().map(Vec::len).max().unwrap_or(0);
        self.shared.modules.prepare(nth(0), None)?;
        self.shared.modules.prepare((1..most).flat_map(nth), Some(deadline))
    }

    /// Milliseconds of each candidate that was compiled and whose results are right.
    fn try_all(&self, Met { problem, candidates, make }: &Met, kernels: &Kernels) -> Result<Vec<Option<f64>>> {
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
        for (index, kernels) in kernels.iter().enumerate() {
            if !kernels.iter().all(|one| self.shared.modules.has(one)) {
                graphs.push(None);
                continue;
            }
            if let Err(error) = run(&mut trial, index).and_then(|()| self.check(&results, &expected, bound)) {
                if index == 0 {
                    return Err(error);
                }
                let message = format!("{problem}: the tile {} is left out", candidates[index]);
                lock(&self.shared.tuner).warnings.push_back(Error::new(error.kind(), message).because(error));
                graphs.push(None);
                continue;
            }
            graphs.push(Some(self.record(&log, || (0..launches).try_for_each(|_| trial.run()))?));
        }
        // A GPU that idled while kernels were compiled takes some turns to reach its clock: what scatters is taken again.
        let timing = Instant::now();
        loop {
            let (best, of_rule) = self.turns(&graphs, launches, timing)?;
            if is_quiet(&of_rule) {
                return Ok(best);
            }
            if timing.elapsed() > TIMING {
                let turns: Vec<String> = of_rule.iter().map(|ms| format!("{:.1}", ms * 1e3)).collect();
                let message =
                    format!("the same launches took {} us in turn: something else uses the GPU", turns.join(", "));
                return Err(Error::new(Kind::Device, message).hint("it is tuned at the next start"));
            }
        }
    }

    /// The best of a few turns of each graph, ms a launch, and all turns of the first one, the rules' choice. A graph that is not
    /// there gets none, and the turn in which [`TIMING`] since `began` is over is the last.
    fn turns(&self, graphs: &[Option<Graph>], launches: usize, began: Instant) -> Result<(Vec<Option<f64>>, Vec<f64>)> {
        let mut best: Vec<Option<f64>> = vec![None; graphs.len()];
        let mut of_rule = Vec::new();
        // The first turn warms up; it counts all the same, since only the best of all turns does.
        for round in 0..ROUNDS {
            if round > 0 && began.elapsed() > TIMING {
                break;
            }
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
                    if index == 0 {
                        of_rule.push(time);
                    }
                }
            }
        }
        Ok((best, of_rule))
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

    /// That no result differs from what is expected by more than `bound`, in the relative Frobenius norm.
    fn check(&self, results: &[Written], expected: &[Memory], bound: f64) -> Result<()> {
        let partials = self.context().allocate(2 * PARTIALS * 4)?;
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
            let configuration = self.configuration(COMPARISON, true, &[]);
            // SAFETY: the arguments are the kernel's: two arrays as long, and two partial sums a block.
            unsafe { self.launch(&configuration, name, Grid::new(PARTIALS, 256, 0), &args)? };
            let sums = partials.read::<f32>(2 * PARTIALS)?;
            let sum = |which: usize| sums.iter().skip(which).step_by(2).map(|&sum| f64::from(sum)).sum::<f64>();
            let error = (sum(0) / sum(1).max(f64::MIN_POSITIVE)).sqrt();
            // Also where a number is not finite.
            if error.is_nan() || error > bound {
                let message =
                    format!("its results differ from the rules' choice's by {error:.1e}, {bound:.0e} are allowed");
                return Err(Error::new(Kind::Selftest, message));
            }
        }
        Ok(())
    }
}
