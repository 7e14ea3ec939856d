//! Learning curves: test accuracy by epoch and by second of training.

use super::{Chart, Picture, Section, joined, training};
use crate::{
    measure::record::Training,
    model::persistent::Steps,
    report::{
        axis::Axis,
        data::Data,
        frame::Frame,
        palette,
        plot::{Mark, Panel, Plot, Series},
        training_table as end,
    },
};

/// Accuracies that lie so near to each other look the same: 0.05 points.
const SAME: f64 = 0.0005;

pub(super) fn charts(data: &Data) -> Vec<Chart> {
    let mut charts = Vec::new();
    for (device, precision) in data.settings() {
        let here = training::of(data, &device, precision);
        let mut settings: Vec<Vec<&Training>> = Vec::new();
        for training in here {
            match settings.iter_mut().find(|group| end::same_setting(group[0], training)) {
                Some(group) => group.push(training),
                None => settings.push(vec![training]),
            }
        }
        let several = settings.len() > 1;
        for group in &settings {
            let network = &group[0].configuration.network;
            let shape = format!("-{}x{}x{}", network.width, network.hidden, group[0].configuration.batch_size);
            let name =
                format!("curves{}{}", data.suffix(&device, precision), if several { shape.as_str() } else { "" });
            charts.push(chart(data, name, group));
        }
    }
    charts
}

fn chart(data: &Data, name: String, trainings: &[&Training]) -> Chart {
    let config = &trainings[0].configuration;
    let percent = |t: &Training| t.epochs.iter().map(|e| 100.0 * e.test_accuracy).collect::<Vec<_>>();
    // Where curves lie on each other the later ones are thinner, so that all are seen.
    let width = |index: usize| 2.0 + 1.5 * (trainings.len() - 1 - index).min(4) as f64;
    let curve = |xs: fn(&Training) -> Vec<f64>, index: usize, t: &Training| Series {
        points: xs(t).into_iter().zip(percent(t)).collect(),
        color: palette::series(super::series(&t.configuration.swiglu)),
        mark: mark(t, if t.epochs.len() > 30 { Mark::Line } else { Mark::Disc }),
        line: Some(width(index)),
    };
    let panel = |heading: &str, x: (&str, Axis), xs: fn(&Training) -> Vec<f64>| Panel {
        heading: heading.into(),
        x: (x.0.into(), x.1),
        y: ("test accuracy (%)".into(), Axis::percent(trainings.iter().flat_map(|t| percent(t)))),
        series: trainings.iter().enumerate().map(|(index, t)| curve(xs, index, t)).collect(),
    };
    let last = trainings.iter().flat_map(|t| epochs(t)).fold(1.0, f64::max);
    let longest = trainings.iter().flat_map(|t| seconds(t)).fold(0.0, f64::max);
    let title = format!("Learning curves ({}, {})", config.device, config.precision.name());
    Chart {
        name,
        section: Section::Training,
        alt: format!("Line chart. {title}: test accuracy of {} trainings by epoch and by second.", trainings.len()),
        caption: caption(trainings),
        picture: Picture::Plot(Plot {
            frame: Frame {
                title,
                subtitle: format!("{}; seed {}, one run each", end::setting_name(config), config.seed),
                legend: "By the second: training time alone, without loading, compiling and inference.".into(),
                source: training::source(data, &config.device, config.precision),
            },
            panels: vec![
                panel("by epoch: what they learn", ("epoch", Axis::epochs(last, false)), epochs),
                panel(
                    "by second: what that costs",
                    ("training time (s)", Axis::linear(0.0, longest, f64::INFINITY)),
                    seconds,
                ),
            ],
            entries: trainings
                .iter()
                .map(|t| {
                    let name = t.name();
                    (name, palette::series(super::series(&t.configuration.swiglu)), mark(t, Mark::Line))
                })
                .collect(),
        }),
    }
}

/// Persistent steps have the colour of the same implementation by launches: dashes tell them apart.
fn mark(training: &Training, by_launches: Mark) -> Mark {
    if training.configuration.steps == Steps::Persistent { Mark::Dashes } else { by_launches }
}

fn epochs(training: &Training) -> Vec<f64> {
    training.epochs.iter().map(|epoch| f64::from(epoch.epoch)).collect()
}

/// Training time at the end of each epoch.
fn seconds(training: &Training) -> Vec<f64> {
    let mut total = 0.0;
    let mut add = |ms: f64| {
        total += ms / 1e3;
        total
    };
    training.epochs.iter().map(|epoch| add(epoch.train_ms)).collect()
}

fn caption(trainings: &[&Training]) -> String {
    let Some(first) = trainings.first() else { return String::new() };
    let same = |t: &&&Training| {
        let pairs = || t.epochs.iter().zip(&first.epochs);
        t.epochs.len() == first.epochs.len() && pairs().all(|(a, b)| (a.test_accuracy - b.test_accuracy).abs() < SAME)
    };
    let (alike, apart): (Vec<_>, Vec<_>) = trainings.iter().partition(same);
    let names = |of: &[&&Training]| joined(&of.iter().map(|t| t.name()).collect::<Vec<_>>());
    let mut said = Vec::new();
    if alike.len() > 1 {
        said.push(format!(
            "By epoch, {} lie on each other: the same mathematics from the same seed. By second they part, and that is \
             what the choice between them costs.",
            names(&alike)
        ));
    }
    for other in &apart {
        let (Some(here), Some(there)) = (end::accuracy(other), end::accuracy(first)) else { continue };
        let points = 100.0 * (here - there);
        said.push(format!(
            "{} ends {:.2} points {} {}.",
            other.name(),
            points.abs(),
            if points < 0.0 { "below" } else { "above" },
            first.name()
        ));
    }
    said.join(" ")
}
