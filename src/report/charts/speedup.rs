//! Waterfalls: from `liger-style` in fp32 to the fastest, each step a measured record.

use super::{
    super::waterfall::{self, Cause, Goal, Waterfall},
    Chart, Picture, Section, alt, joined,
};
use crate::{
    measure::{peers::Timed, work::Pass},
    report::{
        bars::{Bar, Bars},
        data::Data,
        frame::Frame,
        table::ms,
    },
};

/// Colours of what stands, gains and losses.
const STANDS: usize = 0;
const GAIN: usize = 2;
const LOSS: usize = 1;

pub(super) fn charts(data: &Data) -> Vec<Chart> {
    let step = |timed| matches!(timed, Some(Timed::Pass(Pass::Step | Pass::StepDx)));
    let layer = |goal| few(waterfall::layer(&data.cases, goal));
    [
        chart(
            data,
            "speedup-training",
            "From liger-style to the fastest training",
            ("an epoch", "fastest to slowest"),
            |timed| timed == Some(Timed::Epoch),
            few(waterfall::training(&data.trainings)),
        ),
        chart(
            data,
            "speedup-step",
            "From liger-style to the fastest step of the layer",
            ("a step", "p10 to p90"),
            step,
            layer(Goal::Fastest),
        ),
        chart(
            data,
            "speedup-learning",
            "The same, the layer's weights still learning",
            ("a step", "p10 to p90"),
            step,
            layer(Goal::Learning),
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Of each device, the ways with the most and the least to gain: the others lie between, and are in the table.
fn few(ways: Vec<Waterfall>) -> Vec<Waterfall> {
    let mut kept: Vec<Waterfall> = Vec::new();
    let mut devices: Vec<&str> = Vec::new();
    for way in &ways {
        if !devices.contains(&way.device.as_str()) {
            devices.push(&way.device);
        }
    }
    for device in devices {
        let of = || ways.iter().filter(|way| way.device == device);
        let by = |a: &&Waterfall, b: &&Waterfall| a.speedup().total_cmp(&b.speedup());
        for way in [of().max_by(by), of().min_by(by)].into_iter().flatten() {
            if !kept.contains(way) {
                kept.push(way.clone());
            }
        }
    }
    kept
}

fn chart(
    data: &Data,
    name: &str,
    title: &str,
    (unit, spread): (&str, &str),
    of: impl Fn(Option<Timed>) -> bool,
    ways: Vec<Waterfall>,
) -> Option<Chart> {
    let first = ways.first()?;
    let groups: Vec<(String, Vec<Bar>)> =
        ways.iter().map(|way| (format!("{}: {:.2} x in all", way.setting, way.speedup()), bars(way))).collect();
    let samples = ways.iter().map(|way| way.samples).min().unwrap_or(0);
    Some(Chart {
        name: name.into(),
        section: Section::Speedup,
        alt: alt(&format!("{title}: a waterfall of the median time of {unit}"), &groups),
        picture: Picture::Bars(Bars {
            frame: Frame {
                title: title.into(),
                subtitle: format!("median time of {unit}, n >= {samples}; thin line: {spread}"),
                legend: "Blue: where it starts. Green: saved by the step; orange: lost by it; grey: what is left. Precision and \
                         work left out are not equal work: see the error or the accuracy beside them."
                    .into(),
                source: data.source(|measured| {
                    !measured.peer && of(measured.timed) && ways.iter().any(|way| way.device == measured.device)
                }),
            },
            groups,
        }),
        caption: caption(first),
    })
}

fn bars(way: &Waterfall) -> Vec<Bar> {
    let mut bars = Vec::new();
    let mut before: Option<f64> = None;
    for step in &way.steps {
        let words = match before {
            None => format!("start: {}", step.label),
            Some(_) => format!("{}: {}", names(&step.causes), step.label),
        };
        let factor = before.map_or(String::new(), |before| format!(" ({:.2} x)", before / step.ms));
        let quality = if step.quality.is_empty() { String::new() } else { format!(", {}", step.quality) };
        bars.push(Bar {
            label: words,
            note: format!("{} ms{factor}{quality}", ms(step.ms)),
            from: before.unwrap_or(0.0),
            value: Some(step.ms),
            ghost: before.map(|before| before.min(step.ms)),
            series: match before {
                None => STANDS,
                Some(before) if before >= step.ms => GAIN,
                Some(_) => LOSS,
            },
            spread: step.spread,
            less_work: step.causes.contains(&Cause::LessWork),
            ..Bar::default()
        });
        before = Some(step.ms);
    }
    bars
}

fn caption(way: &Waterfall) -> String {
    let mut said = match way.largest() {
        Some((causes, factor)) => {
            format!("At {}, most comes from {}: {factor:.2} of {:.2} times.", way.setting, names(causes), way.speedup())
        }
        None => format!("At {}, no step makes it faster.", way.setting),
    };
    let lost: Vec<String> = way
        .factors()
        .into_iter()
        .filter(|(_, factor)| *factor < 0.995)
        .map(|(causes, factor)| {
            let alone = if causes.len() == 1 { "alone costs" } else { "together cost" };
            format!("{} {alone} time ({factor:.2} x)", names(causes))
        })
        .collect();
    if !lost.is_empty() {
        said.push_str(&format!(" {}.", capital(&joined(&lost))));
    }
    if way.steps.iter().all(|step| !step.causes.contains(&Cause::Precision)) && !way.missing.contains(&Cause::Precision)
    {
        said.push_str(" The fastest is in fp32, so that no step changes the precision.");
    }
    if !way.missing.is_empty() {
        said.push_str(&format!(" Not measured, and so not shown: {}.", names(&way.missing)));
    }
    said
}

fn names(causes: &[Cause]) -> String {
    joined(&causes.iter().map(|cause| cause.name().to_owned()).collect::<Vec<_>>())
}

/// `words` as a sentence begins; a symbol, such as dWf, stays as it is written.
fn capital(words: &str) -> String {
    let mut letters = words.chars();
    if words.split(' ').next().is_some_and(|first| first.contains(char::is_uppercase)) {
        return words.to_owned();
    }
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}
