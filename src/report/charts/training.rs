//! Whole trainings: time of an epoch and of inference with accuracy beside them, and the cost of accuracy.

use super::{Chart, Picture, Section, add, alt, join, seconds, series};
use crate::{
    measure::{
        peers::{PeerCase, Timed},
        record::Training,
    },
    report::{
        bars::{Bar, Bars},
        data::Data,
        frame::Frame,
        peer_table::{self, same_epoch},
        table::ms,
        training_table::{self as end, GOALS},
    },
    swiglu::Precision,
};

pub(super) fn charts(data: &Data) -> Vec<Chart> {
    let mut charts = Vec::new();
    for (device, precision) in data.settings() {
        let here = of(data, &device, precision);
        charts.extend(times(data, &here, &device, precision));
        charts.extend(cost(data, &here, &device, precision));
    }
    charts
}

/// The trainings of one setting that have an epoch.
pub(super) fn of<'a>(data: &'a Data, device: &str, precision: Precision) -> Vec<&'a Training> {
    let here = |t: &&Training| t.configuration.device == device && t.configuration.precision == precision;
    data.trainings.iter().filter(here).filter(|t| !t.epochs.is_empty()).collect()
}

/// Where the trainings of one setting were run, peers left out.
pub(super) fn source(data: &Data, device: &str, precision: Precision) -> String {
    data.source(|of| of.is(device, precision) && of.timed == Some(Timed::Epoch) && !of.peer)
}

/// `median of 5 epochs, taking turns`, or what is true of them.
pub(super) fn epochs(trainings: &[&Training]) -> String {
    let counts = || trainings.iter().map(|t| t.epochs.len());
    let turns = if trainings.iter().all(|t| t.interleaved > 1) { ", taking turns" } else { "" };
    match (counts().min().unwrap_or(0), counts().max().unwrap_or(0)) {
        (1, 1) => format!("one epoch each{turns}"),
        (least, most) if least == most => format!("n = {least} epochs{turns}"),
        (least, most) => format!("n = {least} to {most} epochs{turns}"),
    }
}

fn times(data: &Data, trainings: &[&Training], device: &str, precision: Precision) -> Option<Chart> {
    let mut groups: Vec<(String, Vec<Bar>)> = Vec::new();
    for training in trainings {
        let config = &training.configuration;
        let (Some(train), Some(infer), Some(accuracy)) =
            (end::train_ms(training), end::infer_ms(training), end::accuracy(training))
        else {
            continue;
        };
        let bar = Bar {
            label: training.name(),
            note: format!("{} ms, {:.2} %", ms(train), 100.0 * accuracy),
            value: Some(train),
            series: series(&config.swiglu),
            spread: end::span(training, |epoch| epoch.train_ms),
            less_work: !training.trains_wf,
            ..Bar::default()
        };
        let inference = Bar {
            note: format!("{} ms", ms(infer)),
            value: Some(infer),
            spread: end::span(training, |epoch| epoch.infer_ms),
            less_work: false,
            ..bar.clone()
        };
        let setting = end::setting_name(config);
        add(&mut groups, format!("training, an epoch; {setting}"), bar);
        add(&mut groups, format!("inference, the test images; {setting}"), inference);
    }
    for peer in &data.peers {
        let Some(training) = trainings.iter().find(|training| same_epoch(peer, training)) else { continue };
        let setting = end::setting_name(&training.configuration);
        if let Some(bar) = peer_table::bar(peer, peer.median_ms, !peer.trains_wf) {
            join(&mut groups, &format!("training, an epoch; {setting}"), bar);
        }
        if let Some(bar) = peer_table::bar(&PeerCase { accuracy: None, ..peer.clone() }, peer.infer_ms, false) {
            join(&mut groups, &format!("inference, the test images; {setting}"), bar);
        }
    }
    if groups.is_empty() {
        return None;
    }
    let title = format!("Training and inference ({device}, {})", precision.name());
    let frozen = trainings.iter().any(|t| !t.trains_wf);
    Some(Chart {
        name: format!("training{}", data.suffix(device, precision)),
        section: Section::Training,
        alt: alt(&title, &groups),
        caption: caption(trainings),
        picture: Picture::Bars(Bars {
            frame: Frame {
                title,
                subtitle: format!(
                    "median time, {}; thin line: fastest to slowest; %: test accuracy at the end",
                    epochs(trainings)
                ),
                legend: if frozen {
                    "Pale: Wf does not learn, which is less work: look at its accuracy too."
                } else {
                    ""
                }
                .into(),
                source: data.source(|of| of.is(device, precision) && of.timed == Some(Timed::Epoch)),
            },
            groups,
        }),
    })
}

fn caption(trainings: &[&Training]) -> String {
    let time = |t: &Training| end::train_ms(t).unwrap_or(f64::INFINITY);
    let fastest = |learns: bool| {
        trainings.iter().copied().filter(|t| t.trains_wf == learns).min_by(|a, b| time(a).total_cmp(&time(b)))
    };
    let speed = |t: &Training| {
        end::speed(t, trainings).map_or(String::new(), |speed| format!(" ({speed:.2} times liger-style's speed)"))
    };
    let mut said = Vec::new();
    if let Some(best) = fastest(true) {
        let name = best.name();
        said.push(format!(
            "Of those that learn, {name} trains fastest: {} ms an epoch{}.",
            ms(time(best)),
            speed(best)
        ));
        if let Some(frozen) = fastest(false).filter(|frozen| end::same_setting(frozen, best)) {
            let points = 100.0 * (end::accuracy(best).unwrap_or(0.0) - end::accuracy(frozen).unwrap_or(0.0));
            said.push(format!(
                "{} takes {} ms and ends {:.2} points {}.",
                frozen.name(),
                ms(time(frozen)),
                points.abs(),
                if points < 0.0 { "above it" } else { "below it" }
            ));
        }
    }
    said.join(" ")
}

/// What an accuracy costs, in seconds.
fn cost(data: &Data, trainings: &[&Training], device: &str, precision: Precision) -> Option<Chart> {
    let mut groups: Vec<(String, Vec<Bar>)> = Vec::new();
    let mut cheapest: Vec<String> = Vec::new();
    for goal in GOALS {
        let mut best: Option<(f64, &Training)> = None;
        for training in trainings {
            let config = &training.configuration;
            // Where nobody gets there, bars of nothing say less than a sentence.
            let others = trainings.iter().filter(|other| end::same_setting(other, training));
            if others.filter_map(|other| end::seconds_to(other, goal)).next().is_none() {
                continue;
            }
            let (time, wall) = (end::seconds_to(training, goal), end::seconds_from_start(training, goal));
            let note = match (time, wall) {
                (Some(time), Some(wall)) => format!("{}, {} in all", seconds(time), seconds(wall)),
                (Some(time), None) => seconds(time),
                (None, _) => {
                    let best = training.epochs.iter().map(|e| e.test_accuracy).fold(0.0, f64::max);
                    format!("not reached: {:.2} %", 100.0 * best)
                }
            };
            if let Some(time) = time
                && best.is_none_or(|(least, _)| time < least)
            {
                best = Some((time, training));
            }
            let bar = Bar {
                label: training.name(),
                note,
                value: time,
                ghost: wall,
                series: series(&config.swiglu),
                less_work: !training.trains_wf,
                ..Bar::default()
            };
            add(&mut groups, format!("to {} %; {}", 100.0 * goal, end::setting_name(config)), bar);
        }
        let goal = 100.0 * goal;
        cheapest.push(match best {
            Some((time, t)) => format!("{goal} % costs least with {}: {}.", t.name(), seconds(time)),
            None => format!("Nothing here reaches {goal} %."),
        });
    }
    if groups.is_empty() {
        return None;
    }
    let walls = trainings.iter().any(|t| !t.elapsed_ms.is_empty());
    let title = format!("The cost of accuracy ({device}, {})", precision.name());
    Some(Chart {
        name: format!("cost{}", data.suffix(device, precision)),
        section: Section::Training,
        alt: alt(&title, &groups),
        caption: cheapest.join(" "),
        picture: Picture::Bars(Bars {
            frame: Frame {
                title,
                subtitle: "training time to the end of the first epoch that tests as well; one run each".into(),
                legend: if walls {
                    "Grey, and in all: since the process began, with loading, compiling and inference, without the turns of others."
                } else {
                    ""
                }
                .into(),
                source: source(data, device, precision),
            },
            groups,
        }),
    })
}
