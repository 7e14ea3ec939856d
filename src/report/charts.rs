//! The charts of a report, each made from the records alone: what it shows, of what, and what to see in it.

use super::{
    bars::{Bar, Bars},
    layer_table::{gates_name, ratio},
    table::ms,
    training_table as end,
};
use crate::{
    measure::{
        record::{Case, Training},
        timer::Cache,
        work::Pass,
    },
    swiglu,
    train::config::Config,
};

/// A chart with its file name and what to see in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// Name of the files, without extension.
    pub name: String,
    /// The picture.
    pub bars: Bars,
    /// What to see in it, from the numbers.
    pub caption: String,
}

/// The colour of an implementation: the same in every chart.
fn series(name: &str) -> usize {
    swiglu::ALL.iter().position(|entry| entry.name == name).unwrap_or(swiglu::ALL.len())
}

/// Every chart that the records have something for.
pub fn all(cases: &[&Case], trainings: &[&Training], origin: &str) -> Vec<Chart> {
    let layers = [
        (Pass::Forward, "forward", "Forward: x to z"),
        (Pass::BackwardDx, "backward-dx", "Backward without weight gradient: dz to dx"),
        (Pass::Backward, "backward", "Backward with weight gradient: dz to dx and dWf"),
    ];
    let mut charts: Vec<Chart> = training(trainings, origin).into_iter().collect();
    charts.extend(layers.into_iter().filter_map(|(pass, name, title)| layer(cases, pass, name, title, origin)));
    charts
}

/// One pass of the layer, warm cache: a group for each device, precision and shape.
fn layer(cases: &[&Case], pass: Pass, name: &str, title: &str, origin: &str) -> Option<Chart> {
    let of: Vec<&Case> = cases.iter().copied().filter(|c| c.pass == pass && c.cache == Cache::Warm).collect();
    let mut groups: Vec<(String, Vec<Bar>)> = Vec::new();
    let mut best: Option<(f64, String)> = None;
    for case in of.iter().copied() {
        // A forward is timed as for inference: it keeps no gates, whatever the mode.
        if pass == Pass::Forward && of.iter().any(|c| twin(c, case) && c.median_ms < case.median_ms) {
            continue;
        }
        let Some(time) = case.median_ms.filter(|_| case.ok) else { continue };
        let speed = ratio(case, &of);
        let label = match pass {
            Pass::Forward => case.swiglu.clone(),
            _ => format!("{}, gates {}", case.swiglu, gates_name(case.gates)),
        };
        if speed.is_some_and(|speed| best.as_ref().is_none_or(|(most, _)| speed > *most)) {
            best = speed.map(|speed| (speed, format!("{label} at {}", layer_heading(case))));
        }
        let bar = Bar {
            note: format!("{} ms{}", ms(time), speed.map_or(String::new(), |s| format!("  ({s:.2} x)"))),
            label,
            value: time,
            series: series(&case.swiglu),
            floor: Some(case.floor_ms),
            less_work: false,
        };
        add(&mut groups, layer_heading(case), bar);
    }
    if groups.is_empty() {
        return None;
    }
    let samples = of.iter().map(|c| c.samples).min().unwrap_or(0);
    let caption = match best {
        Some((speed, who)) if speed > 1.005 => {
            format!(
                "Most gained over liger-style: {speed:.2} times, by {who}. What is left beyond the tick is overhead."
            )
        }
        _ => "Nothing here is faster than liger-style. What is left beyond the tick is overhead.".into(),
    };
    Some(Chart {
        name: name.into(),
        bars: Bars {
            title: title.into(),
            subtitle: format!("median time, warm cache, n >= {samples}; {origin}"),
            legend: "Black tick: the floor, max(FLOP / measured peak, bytes / measured bandwidth). In brackets: times \
                     liger-style's speed. Each group has its own scale."
                .into(),
            groups,
        },
        caption,
    })
}

/// What is the same in the cases of a group.
pub fn layer_heading(case: &Case) -> String {
    let Case { device, precision, batch, inputs, hidden, .. } = case;
    format!("{device}, {}: B = {batch}, D = {inputs}, H = {hidden}", precision.name())
}

/// What is the same in the trainings of a group.
pub fn training_heading(training: &Training) -> String {
    let Config { device, precision, network, batch_size, .. } = &training.configuration;
    format!("{device}, {}: D = {}, H = {}, B = {batch_size}", precision.name(), network.width, network.hidden)
}

/// Puts a bar under its heading; headings stand in the order in which they come first.
fn add(groups: &mut Vec<(String, Vec<Bar>)>, heading: String, bar: Bar) {
    match groups.iter_mut().find(|(name, _)| *name == heading) {
        Some((_, bars)) => bars.push(bar),
        None => groups.push((heading, vec![bar])),
    }
}

/// The same case but for the gates, the first of equal ones counting.
fn twin(a: &Case, b: &Case) -> bool {
    (a.swiglu == b.swiglu && a.device == b.device && a.precision == b.precision)
        && (a.batch, a.inputs, a.hidden) == (b.batch, b.inputs, b.hidden)
}

/// Training end to end: time, with accuracy beside it.
fn training(trainings: &[&Training], origin: &str) -> Option<Chart> {
    let mut groups: Vec<(String, Vec<Bar>)> = Vec::new();
    let mut epochs = usize::MAX;
    for training in trainings {
        let (Some(time), config) = (end::train_ms(training), &training.configuration) else { continue };
        let accuracy = end::accuracy(training).map_or(String::new(), |a| format!(", {:.2} % right", a * 100.0));
        let bar = Bar {
            label: config.swiglu.clone(),
            value: time,
            note: format!("{} ms{accuracy}", ms(time)),
            series: series(&config.swiglu),
            floor: None,
            less_work: !training.trains_wf,
        };
        epochs = epochs.min(training.epochs.len());
        add(&mut groups, training_heading(training), bar);
    }
    if groups.is_empty() {
        return None;
    }
    let frozen = trainings.iter().any(|t| !t.trains_wf);
    Some(Chart {
        name: "training".into(),
        bars: Bars {
            title: "Training: time of an epoch, and what it reached".into(),
            subtitle: match epochs {
                1 => format!("one epoch each; {origin}"),
                n => format!("median of {n} epochs, taking turns; {origin}"),
            },
            legend: if frozen { "Pale: Wf does not learn, which is less work: look at its accuracy too." } else { "" }
                .into(),
            groups,
        },
        caption: "Compare times of equal work: the bars that are not pale. Accuracy is of the last epoch.".into(),
    })
}
