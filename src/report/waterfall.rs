//! Where a speedup comes from, step by step: from `liger-style` in fp32 with trained weights to the fastest mode. Every
//! step is a measured record; what has none is part of the next one that has, and named there.

use super::{
    data::{best_gates, shape, shape_name},
    training_table as end,
};
use crate::{
    measure::{
        record::{Case, Training},
        timer::Cache,
        work::Pass,
    },
    model::persistent::Steps,
    swiglu::{self, Entry, Gates, Precision, WeightLayout, liger::LIGER_STYLE},
};

/// What changes in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Other numbers in the products.
    Precision,
    /// No dWf: Wf does not learn.
    LessWork,
    /// Products and gate in one kernel, g and u computed again in the backward.
    Fusion,
    /// g and u kept for the backward.
    Gates,
    /// dWf from a kernel of our own; in a training, SGD in its epilogue.
    OwnDwf,
    /// Hundreds of steps in one launch, whose blocks keep the weights.
    OneLaunch,
}

impl Cause {
    /// In a few words.
    pub fn name(self) -> &'static str {
        match self {
            Cause::Precision => "precision",
            Cause::LessWork => "work left out (no dWf)",
            Cause::Fusion => "fusion",
            Cause::Gates => "gates saved",
            Cause::OwnDwf => "dWf in a kernel of our own",
            Cause::OneLaunch => "steps in one launch",
        }
    }
}

/// A measured point on the way.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What changed since the step before: one thing, or several where those between have no records; nothing of the first.
    pub causes: Vec<Cause>,
    /// What is run here.
    pub label: String,
    /// What must be seen with the time: error of the layer, accuracy of a training.
    pub quality: String,
    /// Median time.
    pub ms: f64,
    /// A layer's p10 and p90; a training's fastest and slowest epoch.
    pub spread: Option<(f64, f64)>,
}

/// The way from the slow to the fast.
#[derive(Clone, Debug, PartialEq)]
pub struct Waterfall {
    /// Device and shapes.
    pub setting: String,
    /// Of which device.
    pub device: String,
    /// In the order in which they were taken; never empty.
    pub steps: Vec<Step>,
    /// What has no record, nor one after it that it could be part of, so that it is not among the steps.
    pub missing: Vec<Cause>,
    /// Fewest samples of a step.
    pub samples: usize,
}

impl Waterfall {
    /// How many times faster the last step is than the first.
    pub fn speedup(&self) -> f64 {
        match (self.steps.first(), self.steps.last()) {
            (Some(first), Some(last)) => first.ms / last.ms,
            _ => 1.0,
        }
    }

    /// Each step's changes with their factor: more than 1 is faster.
    pub fn factors(&self) -> Vec<(&[Cause], f64)> {
        self.steps.windows(2).map(|pair| (pair[1].causes.as_slice(), pair[0].ms / pair[1].ms)).collect()
    }

    /// The next step of the way; without a record what changed is part of the step after it.
    fn go(&mut self, cause: Cause, found: Option<(Step, usize)>) {
        self.missing.push(cause);
        if let Some((step, samples)) = found {
            self.samples = self.samples.min(samples);
            self.steps.push(Step { causes: std::mem::take(&mut self.missing), ..step });
        }
    }

    /// The step that brought most, if one brought anything.
    pub fn largest(&self) -> Option<(&[Cause], f64)> {
        self.factors().into_iter().filter(|(_, factor)| *factor > 1.0).max_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// A way with at least one step from its beginning.
    fn kept(self) -> Option<Waterfall> {
        (self.steps.len() > 1).then_some(self)
    }
}

/// The fused entry whose weights learn by `own` products or the library's.
fn fused_learning(own: bool) -> Option<&'static Entry> {
    swiglu::ALL.iter().copied().find(|e| {
        let (kernels, library) = e.launches.backward_dwf;
        e.trains_weight && e.weights == WeightLayout::Packed && if own { kernels > 0 } else { library > 0 }
    })
}

/// Where a way of the layer's step leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// The fastest of all: Wf does not learn.
    Fastest,
    /// The fastest in which it does.
    Learning,
}

/// The ways of the layer's step with warm caches, one a device and shape.
pub fn layer(cases: &[Case], goal: Goal) -> Vec<Waterfall> {
    let of = |case: &&Case| case.cache == Cache::Warm && case.ok && case.median_ms.is_some();
    let cases: Vec<&Case> = cases.iter().filter(of).collect();
    let mut places: Vec<(&str, (usize, usize, usize))> = Vec::new();
    for case in &cases {
        if !places.contains(&(case.device.as_str(), shape(case))) {
            places.push((&case.device, shape(case)));
        }
    }
    let at = |(device, dims): (&str, _)| {
        let here: Vec<&Case> = cases.iter().copied().filter(|c| c.device == device && shape(c) == dims).collect();
        Way { setting: format!("{device}, {}", shape_name(dims)), device: device.into(), cases: here }.walk(goal)
    };
    places.into_iter().filter_map(at).collect()
}

struct Way<'a> {
    setting: String,
    device: String,
    cases: Vec<&'a Case>,
}

impl Way<'_> {
    fn find(&self, swiglu: &str, precision: Precision, pass: Pass, gates: Option<Gates>) -> Option<&Case> {
        let same = |c: &&Case| (c.swiglu.as_str(), c.precision, c.pass) == (swiglu, precision, pass);
        let gates = |c: &&Case| gates.is_none_or(|gates| c.gates == gates);
        let here: Vec<&Case> = self.cases.iter().copied().filter(|c| same(c) && gates(c)).collect();
        best_gates(&here).first().copied()
    }

    fn walk(&self, goal: Goal) -> Option<Waterfall> {
        let pass = if goal == Goal::Fastest { Pass::StepDx } else { Pass::Step };
        let ends = self.cases.iter().filter(|c| c.pass == pass && (goal == Goal::Learning || !c.trains_wf));
        let end = ends.min_by(|a, b| a.median_ms.unwrap_or(f64::MAX).total_cmp(&b.median_ms.unwrap_or(f64::MAX)))?;
        let precision = end.precision;
        let middle = match goal {
            Goal::Fastest => end.swiglu.as_str(),
            Goal::Learning => fused_learning(false)?.name,
        };
        let start = self.find(LIGER_STYLE.name, Precision::Fp32, Pass::Step, None)?;
        let mut way = Waterfall {
            setting: self.setting.clone(),
            device: self.device.clone(),
            steps: vec![step(start)],
            missing: Vec::new(),
            samples: start.samples,
        };
        let mut go = |cause: Cause, case: Option<&Case>| way.go(cause, case.map(|case| (step(case), case.samples)));
        if precision != Precision::Fp32 {
            go(Cause::Precision, self.find(LIGER_STYLE.name, precision, Pass::Step, None));
        }
        if goal == Goal::Fastest {
            go(Cause::LessWork, self.find(LIGER_STYLE.name, precision, Pass::StepDx, None));
        }
        let [again, saved] = [Gates::Recompute, Gates::Save].map(|g| self.find(middle, precision, pass, Some(g)));
        go(Cause::Fusion, again);
        // Where computing them again is faster, saving them is no step towards the fastest.
        let save = saved.is_none_or(|saved| again.is_none_or(|again| saved.median_ms < again.median_ms));
        if save {
            go(Cause::Gates, saved);
        }
        if goal == Goal::Learning {
            let gates = if save { Gates::Save } else { Gates::Recompute };
            go(Cause::OwnDwf, fused_learning(true).and_then(|e| self.find(e.name, precision, pass, Some(gates))));
        }
        way.kept()
    }
}

fn step(case: &Case) -> Step {
    let launches = format!("{} launch{}", case.launches, if case.launches == 1 { "" } else { "es" });
    Step {
        causes: Vec::new(),
        label: format!("{}, {}, {launches}", case.swiglu, case.precision.name()),
        quality: case.rel_err.map_or(String::new(), |error| format!("error {error:.0e}")),
        ms: case.median_ms.unwrap_or_default(),
        spread: case.p10_ms.zip(case.p90_ms),
    }
}

/// The ways of whole trainings, one a setting of device, shapes and batch: precision, fusion, dWf and SGD in one kernel,
/// and at the end the work left out.
pub fn training(trainings: &[Training]) -> Vec<Waterfall> {
    let mut settings: Vec<&Training> = Vec::new();
    for training in trainings {
        if !settings.iter().any(|other| end::same_setting(other, training)) {
            settings.push(training);
        }
    }
    let of = |setting: &Training| {
        let here: Vec<&Training> =
            trainings.iter().filter(|t| end::same_setting(t, setting) && end::train_ms(t).is_some()).collect();
        walk_trainings(&here)
    };
    settings.into_iter().filter_map(of).collect()
}

fn walk_trainings(here: &[&Training]) -> Option<Waterfall> {
    let time = |training: &Training| end::train_ms(training).unwrap_or(f64::MAX);
    let precision = here.iter().min_by(|a, b| time(a).total_cmp(&time(b)))?.configuration.precision;
    let find = |name: &str, precision, persistent: bool| {
        here.iter().copied().find(|t| {
            let config = &t.configuration;
            (config.swiglu.as_str(), config.precision, config.steps == Steps::Persistent)
                == (name, precision, persistent)
        })
    };
    let start = find(LIGER_STYLE.name, Precision::Fp32, false)?;
    let config = &start.configuration;
    let mut way = Waterfall {
        setting: end::setting_name(config),
        device: config.device.clone(),
        steps: vec![training_step(start)],
        missing: Vec::new(),
        samples: start.epochs.len(),
    };
    let frozen = swiglu::ALL.iter().find(|entry| !entry.trains_weight);
    let route = [
        (Cause::Precision, Some(&LIGER_STYLE)),
        (Cause::Fusion, fused_learning(false)),
        (Cause::OwnDwf, fused_learning(true)),
        (Cause::OneLaunch, fused_learning(true)),
        (Cause::LessWork, frozen.copied()),
    ];
    let mut persistent = false;
    for (cause, entry) in route {
        if cause == Cause::Precision && precision == Precision::Fp32 {
            continue;
        }
        let found = entry.and_then(|entry| find(entry.name, precision, persistent || cause == Cause::OneLaunch));
        if cause == Cause::OneLaunch {
            persistent = found.is_some();
        }
        // For small networks on some GPUs alone.
        if found.is_some() || cause != Cause::OneLaunch {
            way.go(cause, found.map(|training| (training_step(training), training.epochs.len())));
        }
    }
    way.kept()
}

fn training_step(training: &Training) -> Step {
    let config = &training.configuration;
    let launches = match config.steps {
        Steps::Persistent => String::new(),
        Steps::Auto | Steps::Launches => format!(", {} launches", training.launches),
    };
    Step {
        causes: Vec::new(),
        label: format!("{}, {}{launches}", training.name(), config.precision.name()),
        quality: end::accuracy(training).map_or(String::new(), |share| format!("{:.2} %", 100.0 * share)),
        ms: end::train_ms(training).unwrap_or_default(),
        spread: end::span(training, |epoch| epoch.train_ms),
    }
}
