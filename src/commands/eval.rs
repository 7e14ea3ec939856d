//! `eval`: a checkpoint on the test images. Accuracy, loss, confusion matrix, and the time of inference: the median of
//! several passes after one that is not counted.

use std::{borrow::Cow, time::Instant};

use serde::Serialize;

use super::{load, out};
use crate::{
    Error, Kind, Result,
    cli::EvalArgs,
    data::{self, CLASSES},
    device::{Device, Tally},
    model::{
        evaluate::Confusion,
        recorded::{self, Evaluation},
    },
    swiglu::Pass,
};

/// What an evaluation came to.
#[derive(Debug, Serialize)]
struct Report {
    event: &'static str,
    checkpoint: String,
    swiglu: &'static str,
    device: String,
    precision: &'static str,
    dataset: String,
    images: usize,
    batch_size: usize,
    test_loss: f64,
    test_accuracy: f64,
    infer_ms: f64,
    images_per_s: f64,
    /// Time of one batch, from its images to their losses: with `--batch-size 1` the latency of a single image.
    batch_us: f64,
    confusion: Confusion,
}

/// Evaluates and prints.
///
/// # Errors
/// When the checkpoint, the data or the device cannot be used.
pub fn run(args: EvalArgs) -> Result<()> {
    let (device, _) = Device::open(&args.device.device, args.device.threads.map(|n| n as usize))?;
    let load::Loaded { mut model, precision, path, .. } =
        load::network(&args.checkpoint, args.swiglu.as_deref(), args.precision, &device)?;
    let dataset = data::load(&args.data)?;
    let labels = dataset.test.labels.clone();
    let images = device.images(Cow::Owned(dataset.test))?;
    let batch = (args.batch_size as usize).min(images.len());
    let mut acts = model.activations(batch, Pass::Inference)?;

    let confusion = model.confusion(&images, &labels, &mut acts, batch)?;
    // One pass that is not counted, then those that are.
    let mut times = Vec::new();
    let mut tally = Tally::default();
    match model.device().clone() {
        Device::Cpu(_) => {
            for _ in 0..=args.repeat {
                let begin = Instant::now();
                tally = model.evaluate(&images, batch, &mut acts)?;
                times.push(begin.elapsed().as_secs_f64() * 1e3);
            }
        }
        Device::Cuda(cuda) => {
            cuda.prepare(|| recorded::evaluate(&mut model, &images, &mut acts, batch))?;
            let pass = Evaluation::new(&cuda, &mut model, &images, &mut acts, batch)?;
            for _ in 0..=args.repeat {
                let (pass, ms) = pass.run()?;
                tally = pass;
                times.push(ms);
            }
        }
    }
    times.remove(0);
    times.sort_by(f64::total_cmp);
    let infer_ms = times[times.len() / 2];
    let report = Report {
        event: "eval",
        checkpoint: path.display().to_string(),
        swiglu: model.entry().name,
        device: device.name(),
        precision: precision.name(),
        dataset: dataset.name,
        images: images.len(),
        batch_size: batch,
        test_loss: tally.mean_loss(),
        test_accuracy: tally.accuracy(),
        infer_ms,
        images_per_s: images.len() as f64 / infer_ms * 1e3,
        batch_us: infer_ms * 1e3 / images.len().div_ceil(batch) as f64,
        confusion,
    };
    if args.json {
        let line = serde_json::to_string(&report)
            .map_err(|e| Error::new(Kind::Io, "cannot write the evaluation as JSON").because(e))?;
        return out::print_line(&line);
    }
    out::print_line(&text(&report, args.repeat))
}

fn text(report: &Report, repeat: u32) -> String {
    let Report { test_accuracy, test_loss, images, infer_ms, images_per_s, batch_size, .. } = report;
    let wrong = (*images as f64 * (1.0 - test_accuracy)).round();
    let mut lines = vec![
        format!(
            "{} on {} ({}, {}, {})",
            report.checkpoint, report.dataset, report.swiglu, report.device, report.precision
        ),
        format!("accuracy   {:.2} %  ({wrong} of {images} wrong)", test_accuracy * 100.0),
        format!("loss       {test_loss:.4}"),
        format!(
            "inference  {infer_ms:.1} ms for {images} images, {batch_size} at a time ({images_per_s:.0} images/s, median of {repeat})"
        ),
        format!("latency    {:.1} us a batch of {batch_size}, one after the other", report.batch_us),
        String::new(),
        "confusion matrix: rows are labels, columns what the network said; zeros are dots".into(),
        format!("     {}", (0..CLASSES).map(|class| format!("{class:>6}")).collect::<String>()),
    ];
    for (label, row) in report.confusion.iter().enumerate() {
        let cells = row.iter().map(|&n| if n == 0 { format!("{:>6}", "·") } else { format!("{n:>6}") });
        lines.push(format!("{label:>4} {}", cells.collect::<String>()));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_names_rows_columns_and_units() {
        let mut confusion = Confusion::default();
        confusion[3][3] = 9;
        confusion[3][5] = 1;
        let report = Report {
            event: "eval",
            checkpoint: "run/checkpoint.safetensors".into(),
            swiglu: "fused-frozen",
            device: "cpu".into(),
            precision: "fp32",
            dataset: "mnist".into(),
            images: 10,
            batch_size: 5,
            test_loss: 0.25,
            test_accuracy: 0.9,
            infer_ms: 2.0,
            images_per_s: 5000.0,
            batch_us: 1000.0,
            confusion,
        };
        let text = text(&report, 3);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "run/checkpoint.safetensors on mnist (fused-frozen, cpu, fp32)");
        assert_eq!(lines[1], "accuracy   90.00 %  (1 of 10 wrong)");
        assert_eq!(lines[3], "inference  2.0 ms for 10 images, 5 at a time (5000 images/s, median of 3)");
        assert_eq!(lines[4], "latency    1000.0 us a batch of 5, one after the other");
        assert_eq!(lines[11], "   3      ·     ·     ·     9     ·     1     ·     ·     ·     ·");
    }
}
