//! Chapter 3: a race. Each implementation really trains, from the same seed; they take turns, and whoever has trained for the
//! least time goes next. So at any moment all have had the same time, and a bar shows how far that took each.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{
    super::{
        compare::{Runner, configuration},
        train_output::Style,
    },
    interrupted,
    page::{Page, bar as drawn},
};
use crate::{
    Result,
    cli::CompareArgs,
    commands::out,
    data::Dataset,
    device::Device,
    measure::record::Training,
    model::{Mlp, checkpoint::Arrays, persistent::Steps},
    swiglu,
    train::{
        metrics::Event,
        observer::{Observer, Progress},
    },
};

/// Training time of a turn, in milliseconds.
const TURN_MS: f64 = 40.0;

/// What a racer came to.
pub struct Finished {
    /// Its training.
    pub training: Training,
    /// Training time of all epochs, in milliseconds.
    pub train_ms: f64,
    /// Training time of a step.
    pub step_ms: f64,
    /// How far weights moved, as shares of their initial norm: stem, SwiGLU, head.
    pub moved: [f64; 3],
}

/// Where a racer is.
struct Racer {
    runner: Runner,
    bar: ProgressBar,
    /// Training time of the epochs that are over, and of the one in progress.
    over_ms: f64,
    used_ms: f64,
    steps: u64,
}

/// Races every implementation, after a `loading` that all share; the result is in the order of [`swiglu::ALL`].
///
/// # Errors
/// When training fails, or `stop` is set.
pub fn run(
    args: &CompareArgs,
    device: &Device,
    dataset: &Dataset,
    loading: Duration,
    stop: &AtomicBool,
) -> Result<Vec<Finished>> {
    let style = Style::detect(false, false);
    let bars = MultiProgress::new();
    let mut racers = Vec::new();
    for &entry in swiglu::ALL {
        if stop.load(Ordering::Relaxed) {
            return Err(interrupted());
        }
        // By launches: a later chapter takes a step apart into those of the layer and the rest.
        let config = configuration(args, entry, device, Steps::Launches)?;
        let mut runner = Runner::new(config, entry, device, dataset, loading)?;
        // What is compiled and captured for a GPU is no part of the race.
        runner.prepare()?;
        let steps = runner.trainer.steps_per_epoch() * u64::from(args.epochs);
        let bar = match style {
            Style::Bars { colour } => bars.add(lane(steps, entry.name, colour)),
            Style::Lines | Style::Silent => ProgressBar::hidden(),
        };
        bar.set_message("at the start");
        racers.push(Racer { runner, bar, over_ms: 0.0, used_ms: 0.0, steps });
    }
    let mut over = Vec::new();
    while let Some(next) = (0..racers.len())
        .filter(|index| !over.contains(index))
        .min_by(|&a, &b| racers[a].used_ms.total_cmp(&racers[b].used_ms))
    {
        let racer = &mut racers[next];
        let done = racer.runner.epochs.len();
        racer.turn(stop, args.epochs)?;
        if stop.load(Ordering::Relaxed) {
            bars.clear().ok();
            return Err(interrupted());
        }
        racer.bar.set_message(racer.message(args.epochs));
        if let Some(epoch) = racer.runner.epochs.get(done)
            && matches!(style, Style::Lines)
        {
            out::print_line(&format!(
                "  {:6.2} s  {:<18} epoch {} of {}: {:.2} % right",
                racer.over_ms / 1e3,
                racer.runner.entry.name,
                epoch.epoch,
                args.epochs,
                100.0 * epoch.test_accuracy
            ))?;
        }
        if racer.runner.epochs.len() == args.epochs as usize {
            over.push(next);
            racer.bar.set_message(format!("{}, number {}", racer.message(args.epochs), over.len()));
        }
    }
    for racer in &racers {
        racer.bar.finish_and_clear();
    }
    let number = racers.len();
    racers.into_iter().map(|racer| racer.finish(device, dataset, number)).collect()
}

/// A bar with a name before and words behind it, within 80 columns.
fn lane(steps: u64, name: &'static str, colour: bool) -> ProgressBar {
    let longest = swiglu::ALL.iter().map(|entry| entry.name.len()).max().unwrap_or(0);
    let paint = if colour { ".cyan" } else { "" };
    // Our own template: the default style is the fallback that the type asks for.
    let style = ProgressStyle::with_template(&format!("{{prefix:{longest}}} [{{bar:24{paint}}}] {{msg}}"))
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(steps).with_style(style.progress_chars("=> ")).with_prefix(name)
}

impl Racer {
    fn turn(&mut self, stop: &AtomicBool, epochs: u32) -> Result<()> {
        let end = AtomicBool::new(false);
        let begin = self.used_ms;
        let steps = self.steps / u64::from(epochs);
        let mut watcher = Turn {
            stop,
            end: &end,
            bar: &self.bar,
            limit_ms: begin + TURN_MS,
            over_ms: &mut self.over_ms,
            used_ms: &mut self.used_ms,
            steps,
        };
        self.runner.go_on(&mut watcher, &end)
    }

    fn message(&self, epochs: u32) -> String {
        let time = format!("{:.2} s", self.used_ms / 1e3);
        match self.runner.epochs.last() {
            None => time,
            Some(last) if last.epoch == epochs => format!("{time}, {:.2} %", 100.0 * last.test_accuracy),
            Some(last) => format!("{time}, {:.2} % after {} of {epochs}", 100.0 * last.test_accuracy, last.epoch),
        }
    }

    fn finish(self, device: &Device, dataset: &Dataset, number: usize) -> Result<Finished> {
        let config = &self.runner.config;
        let initial = Mlp::new(config.mlp(device)?, config.seed)?.weights()?;
        let trained = self.runner.trainer.model().weights()?;
        let moved = ["stem.", "layers.", "head."].map(|part| change(&initial, &trained, part));
        let (train_ms, steps) = (self.over_ms, self.steps);
        let training = self.runner.finish(device, dataset, number)?;
        Ok(Finished { training, train_ms, step_ms: train_ms / steps as f64, moved })
    }
}

/// |W - W0| / |W0| over the weights of a part; biases begin at nought and are left out.
fn change(initial: &Arrays, trained: &Arrays, part: &str) -> f64 {
    let (mut moved, mut norm) = (0.0, 0.0);
    for (name, before) in initial.iter().filter(|(name, _)| name.starts_with(part) && name.ends_with("weight")) {
        let Some(after) = trained.get(name) else { continue };
        for (&a, &b) in after.data.iter().zip(&before.data) {
            moved += f64::from(a - b).powi(2);
            norm += f64::from(b).powi(2);
        }
    }
    if norm > 0.0 { (moved / norm).sqrt() } else { 0.0 }
}

/// Ends a turn when its time is used up, at the end of an epoch, and when the user wants to stop.
struct Turn<'a> {
    stop: &'a AtomicBool,
    end: &'a AtomicBool,
    bar: &'a ProgressBar,
    limit_ms: f64,
    over_ms: &'a mut f64,
    used_ms: &'a mut f64,
    /// Of an epoch.
    steps: u64,
}

impl Observer for Turn<'_> {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        if let Event::Epoch(epoch) = event {
            *self.over_ms += epoch.train_ms;
            *self.used_ms = *self.over_ms;
            self.end.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn on_progress(&mut self, progress: &Progress) {
        *self.used_ms = *self.over_ms + progress.train_ms;
        self.bar.set_position(u64::from(progress.epoch.saturating_sub(1)) * self.steps + progress.step);
        if *self.used_ms >= self.limit_ms || self.stop.load(Ordering::Relaxed) {
            self.end.store(true, Ordering::Relaxed);
        }
    }
}

/// The result of the race.
pub fn standings(page: &mut Page, finished: &[Finished]) {
    let mut order: Vec<&Finished> = finished.iter().collect();
    order.sort_by(|a, b| a.train_ms.total_cmp(&b.train_ms));
    let slowest = order.last().map_or(0.0, |last| last.train_ms);
    for (place, one) in order.iter().enumerate() {
        let (training, accuracy) = (&one.training, one.training.epochs.last().map_or(0.0, |e| e.test_accuracy));
        page.line(&format!(
            "  {}. {:<18} {} {:6.2} s  {:.2} %{}",
            place + 1,
            training.configuration.swiglu,
            drawn('#', one.train_ms, slowest, 26),
            one.train_ms / 1e3,
            100.0 * accuracy,
            if training.trains_wf { "" } else { "  less work" }
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::checkpoint::Array;

    #[test]
    fn a_change_is_a_share_of_the_initial_norm_and_nought_of_what_stayed() {
        let arrays = |layer: f32| -> Arrays {
            let array = |value: f32| Array { shape: vec![2], data: vec![value, 0.0] };
            [("stem.weight", 2.0), ("stem.bias", layer), ("layers.0.gate.weight", layer)]
                .map(|(name, value)| (name.to_owned(), array(value)))
                .into()
        };
        assert_eq!(change(&arrays(4.0), &arrays(5.0), "layers."), 0.25);
        assert_eq!(change(&arrays(4.0), &arrays(5.0), "stem."), 0.0, "biases are left out");
        assert_eq!(change(&arrays(0.0), &arrays(0.0), "layers."), 0.0);
    }
}
