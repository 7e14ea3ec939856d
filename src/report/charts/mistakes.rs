//! The digits that the best training of each device gets wrong, and its confusion matrix.

use super::{Chart, Picture, Section, training};
use crate::{
    measure::record::Training,
    report::{
        data::Data,
        frame::Frame,
        mistakes::{Digits, Matrix, most_confused},
        training_table as end,
    },
};

pub(super) fn charts(data: &Data) -> Vec<Chart> {
    let mut devices: Vec<String> = Vec::new();
    for (device, _) in data.settings() {
        if !devices.contains(&device) {
            devices.push(device);
        }
    }
    let several = devices.len() > 1;
    devices.iter().flat_map(|device| of_device(data, device, several)).collect()
}

fn of_device(data: &Data, device: &str, several: bool) -> Vec<Chart> {
    let accuracy = |t: &&Training| end::accuracy(t).unwrap_or(0.0);
    let here = data.trainings.iter().filter(|t| t.configuration.device == device && !t.confusion.is_empty());
    // The first of equals: the order of the records is that of the tables.
    let Some(best) = here.rev().max_by(|a, b| accuracy(a).total_cmp(&accuracy(b))) else { return Vec::new() };
    let config = &best.configuration;
    let suffix = if several { format!("-{}", device.replace([':', ' '], "-")) } else { String::new() };
    let images: u64 = best.confusion.iter().flatten().sum();
    let right: u64 = best.confusion.iter().enumerate().filter_map(|(i, row)| row.get(i)).sum();
    let wrong = images - right;
    let frame = |title: &str, legend: &str| Frame {
        title: title.into(),
        subtitle: format!(
            "{}, {}, {}; {wrong} of {} test images wrong after {} epochs",
            best.name(),
            config.precision.name(),
            end::setting_name(config),
            thousands(images),
            best.epochs.len()
        ),
        legend: legend.into(),
        source: training::source(data, device, config.precision),
    };
    let mut charts = Vec::new();
    if let Some(surest) = best.wrong.first() {
        let told: Vec<String> = best.wrong.iter().map(|w| format!("a {} read as {}", w.label, w.said)).collect();
        charts.push(Chart {
            name: format!("wrong{suffix}"),
            section: Section::Mistakes,
            alt: format!("Pictures of {} digits: {}.", best.wrong.len(), told.join(", ")),
            caption: format!(
                "The surest mistake is image {} of the test set: a {} read as {}.",
                surest.index, surest.label, surest.said
            ),
            picture: Picture::Digits(Digits {
                frame: frame(
                    "Digits it gets wrong, the surest first",
                    "One run; percentages are its own probabilities.",
                ),
                wrong: best.wrong.clone(),
            }),
        });
    }
    charts.push(Chart {
        name: format!("confusion{suffix}"),
        section: Section::Mistakes,
        alt: format!("Confusion matrix of {images} test images: {right} on the diagonal, {wrong} off it."),
        caption: most_confused(&best.confusion).map_or("Nothing is confused.".into(), |(is, said, count)| {
            format!("Most often confused: {is} read as {said}, {count} times.")
        }),
        picture: Picture::Matrix(Matrix {
            frame: frame("Confusion matrix", "Counts of images; orange: mistakes, the darker the more."),
            counts: best.confusion.clone(),
        }),
    });
    charts
}

/// `10,000`.
fn thousands(number: u64) -> String {
    match number {
        ..1000 => number.to_string(),
        _ => format!("{},{:03}", thousands(number / 1000), number % 1000),
    }
}
