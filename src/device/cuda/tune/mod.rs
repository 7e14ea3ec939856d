//! Which tile a kernel is launched with: what rules say, or what was measured to be faster on this GPU.
//!
//! A launch names its [`Problem`], the rules' choice and the others that are worth a try ([`hopper`], [`portable`]), and how to
//! try one ([`Cuda::tile`]). Trying happens in [`Cuda::tune`] alone, never inside what is measured: candidates are compiled on all
//! cores, their results compared with those of the rules' choice, then timed (`trial.rs`). The choice (`pick.rs`) is kept on disk
//! (`store.rs`) and never changes while the program runs. Tiles decide the order of sums: so a checkpoint names those of its run,
//! and a resumed run is given the same, whatever the disk remembers.

pub mod hopper;
mod pick;
pub mod portable;
mod store;
mod trial;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
};

use serde::{Deserialize, Serialize};

use super::{Cuda, Mode, driver::Gpu, lock};
use crate::{Error, Kind, Result, device::Precision};
use store::{Entry, Found, Store};
pub use trial::{Trial, Written};

/// Products with fewer multiplications than this are a few microseconds, most of them the launch: the rules decide.
const WORTH_IT: usize = 1 << 23;

/// Something that tiles are chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// The kernel's file.
    pub file: &'static str,
    /// What it computes in.
    pub precision: Precision,
    /// Images.
    pub batch: usize,
    /// Inputs of the layer.
    pub inputs: usize,
    /// Its outputs.
    pub hidden: usize,
    /// The forward writes gates, the backward reads them.
    pub gates: bool,
    /// SGD rides on the product.
    pub update: bool,
    /// Rows are whole 16 bytes. Others take seconds to compile, and the rules decide.
    pub aligned: bool,
    /// dx and dWf run side by side, on tiles that fit each other: the rules name one pair.
    pub beside: bool,
}

impl Problem {
    fn is_worth_it(&self) -> bool {
        self.aligned && self.batch * self.inputs * self.hidden >= WORTH_IT
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { file, precision, batch, inputs, hidden, .. } = self;
        write!(f, "{} {} {batch}x{inputs}x{hidden}", file.trim_end_matches(".cu"), precision.name())?;
        let words =
            [(self.gates, " gates"), (self.update, " update"), (!self.aligned, " unaligned"), (self.beside, " beside")];
        words.iter().filter(|(is, _)| *is).try_for_each(|(_, word)| f.write_str(word))
    }
}

/// A tile that a kernel may be launched with.
pub trait Candidate: Clone {
    /// Its name, another for every candidate of a problem: what is kept on disk, in records and in checkpoints.
    fn name(&self) -> String;
}

/// Who chose a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// The rules, unasked.
    Rule,
    /// The tuner, in this process or an earlier one.
    Tuner,
    /// The run that goes on.
    Checkpoint,
}

/// The tile of a problem, and how it came to be chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chosen {
    /// Kernel, precision, shape and variant.
    pub problem: String,
    /// The tile.
    pub tile: String,
    /// Who chose it.
    pub by: By,
    /// Candidates that were timed, the rules' choice among them; 0 where none was.
    pub timed: usize,
    /// Microseconds of the rules' choice and of this one, in a graph of launches with warm caches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub us: Option<(f64, f64)>,
    /// What finding out took, compiling included, in ms, of a problem's share where several were tuned together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuning_ms: Option<f64>,
}

/// What choosing tiles took so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TuneTime {
    /// Problems that were tuned.
    pub tuned: usize,
    /// Wall time of tuning, in ms.
    pub ms: f64,
}

impl TuneTime {
    /// What came after `before`.
    #[must_use]
    pub fn since(self, before: TuneTime) -> TuneTime {
        TuneTime { tuned: self.tuned - before.tuned, ms: self.ms - before.ms }
    }
}

/// Makes what a candidate is tried on.
pub type Make = fn(&Cuda, Problem) -> Result<Box<dyn Trial>>;

/// A problem that a plan came upon, with the names of its candidates, the rules' choice first.
#[derive(Clone)]
pub(super) struct Met {
    problem: Problem,
    candidates: Vec<String>,
    make: Make,
}

impl fmt::Debug for Met {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.problem, self.candidates)
    }
}

/// What is known of tiles in this process.
#[derive(Debug)]
pub(super) struct Tuner {
    enabled: bool,
    store: Store,
    /// Choices, which stay: the candidate's index, and how it came to be.
    known: HashMap<Problem, (usize, Chosen)>,
    /// What a checkpoint names: problem, tile.
    pinned: BTreeMap<String, String>,
    /// The candidate that is being tried.
    forced: Option<(Problem, usize)>,
    time: TuneTime,
    warnings: VecDeque<Error>,
}

impl Tuner {
    fn new(store: Store) -> Tuner {
        Tuner {
            enabled: false,
            store,
            known: HashMap::new(),
            pinned: BTreeMap::new(),
            forced: None,
            time: TuneTime::default(),
            warnings: VecDeque::new(),
        }
    }

    /// The tuner of this user. `driver` is the CUDA version that the driver runs, `nvrtc` the compiler's.
    pub(super) fn of_user(gpu: &Gpu, driver: (i32, i32), nvrtc: (i32, i32)) -> Tuner {
        Tuner::new(Store::of_user(gpu, driver, nvrtc))
    }

    /// The index of the candidate to launch, and how it was chosen. `names` are the candidates, the rules' choice first.
    fn choose(&mut self, problem: Problem, names: &[String]) -> (usize, Chosen) {
        if let Some((index, chosen)) = self.known.get(&problem) {
            return (*index, chosen.clone());
        }
        let Some(tile) = self.pinned.get(&problem.to_string()) else {
            return (0, chosen(problem, names, 0, By::Rule, None));
        };
        let index = names.iter().position(|name| name == tile);
        if index.is_none() {
            let message = format!(
                "{problem}: the run began with the tile {tile}, which there is not here; going on with {}, whose losses may \
                 differ by rounding",
                names[0]
            );
            self.warnings.push_back(Error::new(Kind::Device, message));
        }
        let by = if index.is_some() { By::Checkpoint } else { By::Rule };
        let index = index.unwrap_or(0);
        let chosen = chosen(problem, names, index, by, None);
        self.known.insert(problem, (index, chosen.clone()));
        (index, chosen)
    }

    /// Whether a problem is to be tried: it is worth it, and neither this process nor the disk knows it. What the disk knows is
    /// known from here on.
    fn is_open(&mut self, problem: Problem, names: &[String]) -> bool {
        let open = self.enabled && names.len() > 1 && problem.is_worth_it() && !self.known.contains_key(&problem);
        if !open || self.pinned.contains_key(&problem.to_string()) {
            return false;
        }
        let (by, index, entry) = match self.store.get(problem, names) {
            Found::Nothing => return true,
            Found::Damaged(path) => {
                let message = format!("{} is damaged or cannot be read: {problem} is tuned again", path.display());
                self.warnings.push_back(Error::new(Kind::Io, message));
                return true;
            }
            Found::Unfinished(path) => {
                let message = format!(
                    "{problem} is left to the rules: another process tunes it now, or one was ended while it did"
                );
                let hint = format!("remove {} to have it tuned again", path.display());
                self.warnings.push_back(Error::new(Kind::Device, message).hint(hint));
                (By::Rule, 0, None)
            }
            Found::Entry(entry) => {
                // The names of all candidates are a part of the key: it is one of them.
                let Some(index) = names.iter().position(|name| *name == entry.tile) else { return true };
                (By::Tuner, index, Some(entry))
            }
        };
        self.known.insert(problem, (index, chosen(problem, names, index, by, entry.as_ref())));
        false
    }

    /// Notes on disk that a problem is being tried: should a candidate hang, so that the process is ended, the next start leaves
    /// the problem to the rules instead of hanging again.
    fn begin(&mut self, problem: Problem, names: &[String]) {
        self.store.put(
            problem,
            names,
            &Entry { tile: names[0].clone(), timed: 0, rule_us: 0.0, tile_us: 0.0, ms: 0.0 },
        );
    }

    /// Keeps what was found out, in this process and on disk.
    fn learn(&mut self, problem: Problem, names: &[String], index: usize, entry: &Entry) {
        self.known.insert(problem, (index, chosen(problem, names, index, By::Tuner, Some(entry))));
        self.store.put(problem, names, entry);
        self.time.tuned += 1;
    }
}

fn chosen(problem: Problem, names: &[String], index: usize, by: By, entry: Option<&Entry>) -> Chosen {
    Chosen {
        problem: problem.to_string(),
        tile: names[index].clone(),
        by,
        timed: entry.map_or(0, |entry| entry.timed),
        us: entry.map(|entry| (entry.rule_us, entry.tile_us)),
        tuning_ms: entry.map(|entry| entry.ms),
    }
}

/// The candidate `index`: the rules' choice is number 0.
fn nth<C>(index: usize, rule: C, mut others: Vec<C>) -> C {
    if index == 0 { rule } else { others.swap_remove(index - 1) }
}

impl Cuda {
    /// The tile to launch the kernel of `problem` with: `rule`, which the rules say, or one of `others`. `make` is how a candidate
    /// is tried.
    pub fn tile<C: Candidate>(&self, problem: Problem, rule: C, others: impl FnOnce() -> Vec<C>, make: Make) -> C {
        let mut tuner = lock(&self.shared.tuner);
        if let Some((_, index)) = tuner.forced.filter(|(forced, _)| *forced == problem) {
            return nth(index, rule, others());
        }
        // Asked at every launch: candidates and their names are made only where they are looked at.
        let mut mode = lock(&self.shared.mode);
        let plan = if let Mode::Planning(plan) = &mut *mode { Some(plan) } else { None };
        match tuner.known.get(&problem) {
            _ if plan.is_some() => {}
            Some((0, _)) => return rule,
            Some((index, _)) => return nth(*index, rule, others()),
            None if tuner.pinned.is_empty() => return rule,
            None => {}
        }
        let others = others();
        let names: Vec<String> = std::iter::once(&rule).chain(&others).map(Candidate::name).collect();
        let index = tuner.choose(problem, &names).0;
        if let Some(plan) = plan.filter(|plan| plan.met.iter().all(|met| met.problem != problem)) {
            plan.met.push(Met { problem, candidates: names, make });
        }
        nth(index, rule, others)
    }

    /// Finds the fastest tiles of the kernels that `work` launches, those that are not known, without running any of it: where
    /// that is asked for ([`Cuda::set_autotune`]). The tiles that `work` will launch with.
    ///
    /// # Errors
    /// When `work` fails. What cannot be tuned keeps the rules' choice, with a warning.
    pub fn tune(&self, work: impl FnOnce() -> Result<()>) -> Result<Vec<Chosen>> {
        let met = self.plan(work)?.met;
        let open: Vec<&Met> = {
            let mut tuner = lock(&self.shared.tuner);
            met.iter().filter(|met| tuner.is_open(met.problem, &met.candidates)).collect()
        };
        if !open.is_empty() {
            self.try_problems(&open);
        }
        let mut tuner = lock(&self.shared.tuner);
        Ok(met.iter().map(|met| tuner.choose(met.problem, &met.candidates).1).collect())
    }

    /// Whether [`Cuda::tune`] tries tiles that are not known, and takes what the disk remembers; without it, as at the beginning,
    /// the rules choose.
    pub fn set_autotune(&self, enabled: bool) {
        lock(&self.shared.tuner).enabled = enabled;
    }

    /// The tiles that a checkpoint names, by problem: they come before what disk and rules say.
    pub fn pin_tiles(&self, tiles: &BTreeMap<String, String>) {
        lock(&self.shared.tuner).pinned.clone_from(tiles);
    }

    /// What choosing tiles took so far.
    pub fn tune_time(&self) -> TuneTime {
        lock(&self.shared.tuner).time
    }

    /// What went wrong with tuning, or why its results are not kept, each once.
    pub(super) fn take_tuning_warning(&self) -> Option<Error> {
        let mut tuner = lock(&self.shared.tuner);
        let told = if tuner.enabled { tuner.store.take_warning() } else { None };
        told.or_else(|| tuner.warnings.pop_front())
    }
}

#[cfg(test)]
mod tests;
