//! Which tile a kernel is launched with: what rules say, or what was measured to be faster on this GPU.
//!
//! A launch names its [`Problem`] and its candidates, the rules' choice first, and how to try one ([`Cuda::tile`]); a new
//! kernel is tuned from there on. Trying happens where it was asked for ([`Cuda::set_autotune`]), in [`Cuda::prepare`] alone,
//! when a plan comes upon a problem that is not known: every candidate is compiled, its results compared with those of the rules' choice, then timed (`trial.rs`). The
//! choice (`pick.rs`) is kept on disk (`store.rs`) and never changes while the program runs. A checkpoint names the tiles that
//! its run was given, and a resumed run is given the same, whatever the disk remembers: tiles decide the order of sums.

mod pick;
mod store;
mod trial;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use serde::{Deserialize, Serialize};

use super::{Cuda, Mode, lock};
use crate::{Error, device::Precision};
use store::{Entry, Store};
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
        let words = [(self.gates, " gates"), (self.update, " update"), (!self.aligned, " unaligned")];
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
    /// Whether it is another than the rules'.
    pub differs: bool,
    /// Candidates that were timed, the rules' choice among them; 0 where none was.
    pub timed: usize,
    /// Microseconds of the rules' choice and of this one, in a graph of launches with warm caches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub us: Option<(f64, f64)>,
    /// What finding out took, compiling included, in ms; the problems that were tuned together share it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuning_ms: Option<f64>,
}

/// What choosing tiles took so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TuneTime {
    /// Problems that were tuned.
    pub tuned: usize,
    /// Problems whose choice the disk remembered.
    pub remembered: usize,
    /// Wall time of tuning, in ms.
    pub ms: f64,
}

impl TuneTime {
    /// What came after `before`.
    #[must_use]
    pub fn since(self, before: TuneTime) -> TuneTime {
        TuneTime {
            tuned: self.tuned - before.tuned,
            remembered: self.remembered - before.remembered,
            ms: self.ms - before.ms,
        }
    }
}

/// Makes what a candidate is tried on.
pub type Make = fn(&Cuda, Problem) -> crate::Result<Box<dyn Trial>>;

/// A problem that a plan came upon and nobody knows.
#[derive(Clone)]
pub(super) struct Wanted {
    problem: Problem,
    candidates: Vec<String>,
    make: Make,
}

impl fmt::Debug for Wanted {
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
    warning: Option<Error>,
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
            warning: None,
        }
    }

    /// The tuner of this user.
    pub(super) fn of_user(gpu: &str, nvrtc: (i32, i32)) -> Tuner {
        Tuner::new(Store::of_user(gpu, nvrtc))
    }

    /// The index of the candidate to launch, and how it was chosen. `names` are the candidates, the rules' choice first.
    fn choose(&mut self, problem: Problem, names: &[String]) -> (usize, Chosen) {
        if let Some((index, chosen)) = self.known.get(&problem) {
            return (*index, chosen.clone());
        }
        let index_of = |tile: &String| names.iter().position(|name| name == tile);
        if let Some(index) = self.pinned.get(&problem.to_string()).and_then(index_of) {
            let chosen = chosen(problem, names, index, By::Checkpoint, None);
            self.known.insert(problem, (index, chosen.clone()));
            return (index, chosen);
        }
        if self.enabled
            && problem.is_worth_it()
            && let Some((index, entry)) =
                self.store.get(problem, names).and_then(|entry| Some((index_of(&entry.tile)?, entry)))
        {
            let finished = entry.timed > 0;
            self.time.remembered += usize::from(finished);
            let (by, entry) = if finished { (By::Tuner, Some(&entry)) } else { (By::Rule, None) };
            let chosen = chosen(problem, names, index, by, entry);
            self.known.insert(problem, (index, chosen.clone()));
            return (index, chosen);
        }
        (0, chosen(problem, names, 0, By::Rule, None))
    }

    /// Remembers the rules' choice while others are tried: should one of them hang, so that the process is ended, the next start
    /// leaves the problem to the rules instead of hanging again.
    fn begin(&mut self, problem: Problem, names: &[String]) {
        let rule = Entry { tile: names[0].clone(), timed: 0, rule_us: 0.0, tile_us: 0.0, ms: 0.0 };
        self.store.put(problem, names, &rule);
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
        differs: index > 0,
        timed: entry.map_or(0, |entry| entry.timed),
        us: entry.map(|entry| (entry.rule_us, entry.tile_us)),
        tuning_ms: entry.map(|entry| entry.ms),
    }
}

impl Cuda {
    /// The tile to launch the kernel of `problem` with, of `candidates`: the rules' choice first, and not empty. `make` is how
    /// a candidate is tried.
    pub fn tile<C: Candidate>(&self, problem: Problem, candidates: &[C], make: Make) -> C {
        let mut tuner = lock(&self.shared.tuner);
        if let Some((_, index)) = tuner.forced.filter(|(forced, _)| *forced == problem) {
            return candidates[index].clone();
        }
        // Asked at every launch: names are made only where they are looked at.
        let mut mode = lock(&self.shared.mode);
        if let (Some((index, _)), Mode::Eager | Mode::Recording(_)) = (tuner.known.get(&problem), &*mode) {
            return candidates[*index].clone();
        }
        let names: Vec<String> = candidates.iter().map(Candidate::name).collect();
        let (index, chosen) = tuner.choose(problem, &names);
        if let Mode::Planning(plan) = &mut *mode {
            if !plan.tiles.contains(&chosen) {
                plan.tiles.push(chosen.clone());
            }
            let open = tuner.enabled && chosen.by == By::Rule && problem.is_worth_it() && names.len() > 1;
            if open && !tuner.known.contains_key(&problem) && plan.wanted.iter().all(|other| other.problem != problem) {
                plan.wanted.push(Wanted { problem, candidates: names, make });
            }
        }
        candidates[index].clone()
    }

    /// Whether [`Cuda::prepare`] tries tiles that are not known, and what the disk remembers is used; without it, as at the
    /// beginning, the rules choose.
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

    /// What went wrong with tuning, or why its results are not kept, once.
    pub(super) fn take_tuning_warning(&self) -> Option<Error> {
        let mut tuner = lock(&self.shared.tuner);
        tuner.warning.take().or_else(|| tuner.store.take_warning())
    }
}

#[cfg(test)]
mod tests;
