//! What happens in a run, as events: one JSON object a line in the run's `metrics.jsonl`, the same on standard output
//! with `--json`, and all that learning curves and reports are drawn from.
//!
//! Accuracies are shares (0.9812 is 98.12 %), times are milliseconds, losses are mean cross-entropy in nats. Numbers
//! come back to the last bit; JSON has no NaN or infinity, so those are written as `null` and come back as NaN.

use std::{fs, path::Path};

use serde::{Deserialize, Deserializer, Serialize};

use super::config::Config;
use crate::{Error, Result};

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Training begins, or goes on after `--resume`.
    Start(Box<Start>),
    /// The loss was looked at inside an epoch.
    Step(Step),
    /// An epoch is over and was evaluated.
    Epoch(Epoch),
    /// Training is over, or was interrupted.
    End(End),
}

/// What is trained, on what, where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// Everything that decides the losses.
    pub configuration: Config,
    /// Version of this program.
    pub version: String,
    /// Where it runs, such as `cpu` or `cuda:0`.
    pub device: String,
    /// The name of the processor or GPU, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_name: Option<String>,
    /// CPU threads.
    pub threads: usize,
    /// Numbers that the network holds.
    pub parameters: usize,
    /// Images trained on in an epoch.
    pub train_images: usize,
    /// Images held out for validation.
    pub valid_images: usize,
    /// Images of the test set.
    pub test_images: usize,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// On a GPU: compiling and loading the kernels before the first epoch, in ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compile_ms: Option<f64>,
    /// On a GPU: capturing the step and the evaluations, in ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture_ms: Option<f64>,
    /// On a GPU: launches of one step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launches: Option<usize>,
    /// On a GPU: finding the fastest tiles, in ms; nothing where they were known, or rules choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuning_ms: Option<f64>,
    /// Where a resumed run goes on: (epochs completed, steps done in the next one).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed_at: Option<(u32, u64)>,
}

/// The loss of one training step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The epoch it is in, from 1.
    pub epoch: u32,
    /// Steps of this epoch done, from 1.
    pub step: u64,
    /// Mean loss over the images of this step.
    #[serde(deserialize_with = "null_is_nan_f32")]
    pub loss: f32,
    /// Learning rate of this step.
    #[serde(deserialize_with = "null_is_nan_f32")]
    pub lr: f32,
}

/// What an epoch came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// From 1.
    pub epoch: u32,
    /// Name of the implementation in [`crate::swiglu::ALL`].
    pub swiglu: String,
    /// Where it ran.
    pub device: String,
    /// The numbers of the products.
    pub precision: String,
    /// Mean loss over the images of the epoch, each seen with the weights of its moment.
    #[serde(deserialize_with = "null_is_nan")]
    pub train_loss: f64,
    /// Mean loss over the test images.
    #[serde(deserialize_with = "null_is_nan")]
    pub test_loss: f64,
    /// Share of the test images that are classified right.
    #[serde(deserialize_with = "null_is_nan")]
    pub test_accuracy: f64,
    /// Time of the training steps.
    #[serde(deserialize_with = "null_is_nan")]
    pub train_ms: f64,
    /// Time of the forward passes over the test images.
    #[serde(deserialize_with = "null_is_nan")]
    pub infer_ms: f64,
    /// Images trained on a second.
    #[serde(deserialize_with = "null_is_nan")]
    pub images_per_s: f64,
    /// Mean loss over the images held out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_loss: Option<f64>,
    /// Share of the images held out that are classified right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_accuracy: Option<f64>,
    /// Learning rate at the end of the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f32>,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// Epochs completed, those before a resume included.
    pub epochs: u32,
    /// Test accuracy after the last epoch; none before the first is over.
    pub last_accuracy: Option<f64>,
    /// The best test accuracy after an epoch.
    pub best_accuracy: Option<f64>,
    /// The epoch it came after.
    pub best_epoch: Option<u32>,
    /// Training time of all epochs.
    #[serde(deserialize_with = "null_is_nan")]
    pub total_train_ms: f64,
    /// Inference time of all epochs.
    #[serde(deserialize_with = "null_is_nan")]
    pub total_infer_ms: f64,
    /// Time of this process from its start to its end, loading and saving included.
    #[serde(deserialize_with = "null_is_nan")]
    pub total_wall_ms: f64,
    /// Whether the user stopped it.
    pub interrupted: bool,
}

impl End {
    /// The totals over the `epochs` of a run.
    pub fn of(epochs: &[Epoch], total_wall_ms: f64, interrupted: bool) -> Self {
        let best = epochs
            .iter()
            .filter(|epoch| epoch.test_accuracy.is_finite())
            // The first of equals: `max_by` would take the last.
            .fold(None::<&Epoch>, |best, epoch| match best {
                Some(best) if best.test_accuracy >= epoch.test_accuracy => Some(best),
                _ => Some(epoch),
            });
        End {
            epochs: epochs.last().map_or(0, |epoch| epoch.epoch),
            last_accuracy: epochs.last().map(|epoch| epoch.test_accuracy),
            best_accuracy: best.map(|epoch| epoch.test_accuracy),
            best_epoch: best.map(|epoch| epoch.epoch),
            total_train_ms: epochs.iter().fold(0.0, |sum, epoch| sum + epoch.train_ms),
            // From 0.0: the sum of no floats is -0.0.
            total_infer_ms: epochs.iter().fold(0.0, |sum, epoch| sum + epoch.infer_ms),
            total_wall_ms,
            interrupted,
        }
    }
}

impl Event {
    /// The event as one line of JSON, without the line's end.
    pub fn to_line(&self) -> Result<String> {
        serde_json::to_string(self)
            .map_err(|source| Error::new(crate::Kind::Io, "cannot write an event as JSON").because(source))
    }

    /// The event in one line of JSON; none when the line is half-written or says something else.
    pub fn from_line(line: &str) -> Option<Event> {
        #[derive(Deserialize)]
        struct Tag {
            event: String,
        }
        // Two passes instead of a derived tagged enum: that one goes through f64, where an f32 can lose its last bit.
        let tag: Tag = serde_json::from_str(line).ok()?;
        match tag.event.as_str() {
            "start" => serde_json::from_str(line).ok().map(Event::Start),
            "step" => serde_json::from_str(line).ok().map(Event::Step),
            "epoch" => serde_json::from_str(line).ok().map(Event::Epoch),
            "end" => serde_json::from_str(line).ok().map(Event::End),
            _ => None,
        }
    }
}

/// The events in a metrics file, and how many lines of it are no events (half-written, or edited).
pub fn read_metrics(path: &Path) -> Result<(Vec<Event>, usize)> {
    let bytes = fs::read(path).map_err(|source| {
        Error::io("read the metrics", path, source).hint("give a run's folder or its metrics.jsonl")
    })?;
    // A torn write can end inside a character: only that line is lost to it.
    let text = String::from_utf8_lossy(&bytes);
    let mut skipped = 0;
    let events = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .filter_map(|line| {
            let event = Event::from_line(line);
            skipped += usize::from(event.is_none());
            event
        })
        .collect();
    Ok((events, skipped))
}

fn null_is_nan<'de, D: Deserializer<'de>>(number: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(number)?.unwrap_or(f64::NAN))
}

fn null_is_nan_f32<'de, D: Deserializer<'de>>(number: D) -> std::result::Result<f32, D::Error> {
    Ok(Option::deserialize(number)?.unwrap_or(f32::NAN))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{self, Folder};

    #[test]
    fn an_epoch_has_the_promised_keys_in_the_promised_order() {
        let line = Event::Epoch(testing::epoch(1, 0.25, 0.125, 0.9375)).to_line().unwrap();
        assert_eq!(
            line,
            r#"{"event":"epoch","epoch":1,"swiglu":"fused-frozen","device":"cpu","precision":"fp32","train_loss":0.25,"#
                .to_owned()
                + r#""test_loss":0.125,"test_accuracy":0.9375,"train_ms":1500.5,"infer_ms":40.25,"images_per_s":40000.0}"#
        );
    }

    #[test]
    fn every_event_comes_back_from_its_line() {
        let mut with_validation = testing::epoch(2, 0.1, 0.2, 0.97);
        (with_validation.valid_loss, with_validation.valid_accuracy) = (Some(0.15), Some(0.96));
        with_validation.lr = Some(0.02);
        let end = End::of(&[with_validation.clone()], 2000.0, true);
        for event in [
            Event::Start(Box::new(testing::start())),
            Event::Step(Step { epoch: 1, step: 100, loss: 0.3, lr: 0.02 }),
            Event::Epoch(with_validation),
            Event::End(end),
        ] {
            let line = event.to_line().unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(Event::from_line(&line), Some(event), "{line}");
        }
    }

    proptest! {
        #[test]
        fn numbers_come_back_to_the_last_bit(loss in any::<u32>(), lr in any::<u32>(), bits in any::<u64>()) {
            let (loss, lr, train_loss) = (f32::from_bits(loss), f32::from_bits(lr), f64::from_bits(bits));
            prop_assume!(loss.is_finite() && lr.is_finite() && train_loss.is_finite());
            let line = Event::Step(Step { epoch: 1, step: 1, loss, lr }).to_line().unwrap();
            let Some(Event::Step(step)) = Event::from_line(&line) else { panic!("{line}") };
            prop_assert_eq!((step.loss.to_bits(), step.lr.to_bits()), (loss.to_bits(), lr.to_bits()));
            let line = Event::Epoch(testing::epoch(1, train_loss, 0.0, 0.0)).to_line().unwrap();
            let Some(Event::Epoch(epoch)) = Event::from_line(&line) else { panic!("{line}") };
            prop_assert_eq!(epoch.train_loss.to_bits(), bits);
        }
    }

    #[test]
    fn a_loss_that_is_no_number_is_null_and_comes_back_as_nan() {
        for loss in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let line = Event::Epoch(testing::epoch(1, loss, 0.1, 0.9)).to_line().unwrap();
            assert!(line.contains(r#""train_loss":null"#), "{line}");
            match Event::from_line(&line) {
                Some(Event::Epoch(epoch)) => assert!(epoch.train_loss.is_nan()),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn half_written_lines_are_counted_and_the_others_read() {
        let folder = Folder::new("metrics-half");
        let path = folder.join("metrics.jsonl");
        let line = Event::Epoch(testing::epoch(1, 0.1, 0.1, 0.9)).to_line().unwrap();
        let mut bytes = format!("{line}\n\nnot json\n{{\"event\":\"other\"}}\n{}", &line[..40]).into_bytes();
        bytes.push(0xc3);
        fs::write(&path, bytes).unwrap();
        let (events, skipped) = read_metrics(&path).unwrap();
        assert_eq!((events.len(), skipped), (1, 3));
    }

    #[test]
    fn the_totals_name_the_first_best_epoch_and_the_last_accuracy() {
        let epochs = [
            testing::epoch(1, 0.3, 0.3, 0.95),
            testing::epoch(2, 0.2, 0.2, 0.97),
            testing::epoch(3, 0.1, 0.2, 0.97),
            testing::epoch(4, 0.1, 0.3, 0.96),
        ];
        let end = End::of(&epochs, 7000.0, false);
        assert_eq!((end.epochs, end.best_epoch), (4, Some(2)));
        assert_eq!((end.best_accuracy, end.last_accuracy), (Some(0.97), Some(0.96)));
        assert_eq!((end.total_train_ms, end.total_infer_ms), (6002.0, 161.0));
        let none = End::of(&[], 10.0, true);
        assert_eq!((none.epochs, none.best_epoch, none.last_accuracy), (0, None, None));
    }
}
