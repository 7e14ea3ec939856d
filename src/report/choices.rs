//! "Which one should I use": sentences chosen and filled from the measurements.

use super::{layer_table::gates_name, training_table as end};
use crate::measure::{
    record::{Case, Training},
    work::Pass,
};

/// The sentences; none for questions that nothing was measured for.
pub fn sentences(cases: &[&Case], trainings: &[&Training]) -> Vec<String> {
    let learning: Vec<&Training> = trainings.iter().copied().filter(|t| t.trains_wf).collect();
    let mut said = Vec::new();
    if let Some(best) = fastest(&learning, end::train_ms) {
        let accuracy = end::accuracy(best).map_or(String::new(), |a| format!(", {:.2} % right", 100.0 * a));
        let speed =
            end::speed(best, trainings).map_or(String::new(), |s| format!(", {s:.2} times liger-style's speed"));
        said.push(format!(
            "Training from scratch: {} takes {:.0} ms an epoch{speed}{accuracy}.",
            best.configuration.swiglu,
            end::train_ms(best).unwrap_or_default()
        ));
    }
    for (question, pass) in [
        ("Frozen features (dx, no dWf)", Pass::StepDx),
        ("Inference", Pass::Forward),
        ("A learning layer, small batch", Pass::Step),
    ] {
        let small = cases.iter().filter(|c| c.pass == pass).map(|c| (c.batch, c.inputs)).min();
        let here: Vec<&Case> =
            cases.iter().copied().filter(|c| c.pass == pass && Some((c.batch, c.inputs)) == small && c.ok).collect();
        if let Some(best) = fastest(&here, |c| c.median_ms) {
            said.push(format!(
                "{question}: {} with gates {} is fastest at B = {}, D = {}: {} ms ({}, {} cache).",
                best.swiglu,
                gates_name(best.gates),
                best.batch,
                best.inputs,
                super::table::ms(best.median_ms.unwrap_or_default()),
                best.precision.name(),
                best.cache.name()
            ));
        }
    }
    let steps: Vec<&Case> = cases.iter().copied().filter(|c| c.pass == Pass::Step && c.ok).collect();
    if let (Some(least), Some(most)) =
        (steps.iter().min_by_key(|c| c.saved_bytes), steps.iter().map(|c| c.saved_bytes).max())
    {
        said.push(format!(
            "Memory: {} with gates {} keeps {} bytes between forward and backward; the most is {most}.",
            least.swiglu,
            gates_name(least.gates),
            least.saved_bytes
        ));
    }
    said
}

fn fastest<'a, T>(all: &[&'a T], time: impl Fn(&T) -> Option<f64>) -> Option<&'a T> {
    all.iter()
        .copied()
        .filter(|t| time(t).is_some())
        .min_by(|a, b| time(a).unwrap_or(f64::INFINITY).total_cmp(&time(b).unwrap_or(f64::INFINITY)))
}
