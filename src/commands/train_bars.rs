//! Two bars on a terminal: the epochs of a run, and the steps of the epoch in progress.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::train::observer::Progress;

/// Between two looks at the terminal; a step can take microseconds.
const PAUSE: Duration = Duration::from_millis(50);

/// The bars; they go when this is dropped.
pub struct Bars {
    both: MultiProgress,
    epochs: ProgressBar,
    steps: ProgressBar,
    epoch: Cell<u32>,
    drawn: Cell<Option<Instant>>,
}

impl Bars {
    /// Bars that show themselves at the first progress.
    pub fn new(colour: bool) -> Self {
        let both = MultiProgress::new();
        let [epochs, steps] = [epoch_template(colour), step_template(colour)].map(|template| {
            // Our own template, checked by a test: the default style is the fallback that the type asks for.
            let style = ProgressStyle::with_template(&template)
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("=> ");
            ProgressBar::no_length().with_style(style)
        });
        Bars { both, epochs, steps, epoch: Cell::new(0), drawn: Cell::new(None) }
    }

    /// Moves the bars.
    pub fn show(&self, progress: &Progress) {
        let now = Instant::now();
        let recent = self.drawn.get().is_some_and(|then| now - then < PAUSE);
        let new_epoch = self.epoch.replace(progress.epoch) != progress.epoch;
        if recent && !new_epoch && progress.step < progress.steps {
            return;
        }
        if self.drawn.replace(Some(now)).is_none() {
            self.both.add(self.epochs.clone());
            self.both.add(self.steps.clone());
        }
        if new_epoch {
            self.steps.reset();
            self.epochs.set_length(u64::from(progress.epochs));
            self.steps.set_length(progress.steps);
            self.epochs.set_position(u64::from(progress.epoch.saturating_sub(1)));
        }
        self.steps.set_position(progress.step);
        self.steps.set_message(message(progress));
        self.epochs.tick();
    }

    /// Prints a line above the bars.
    pub fn tell(&self, line: &str) {
        // `MultiProgress::println` shows nothing on a hidden target; a terminal that is gone takes no line either way.
        let _ = self.both.println(line);
    }

    /// Runs `print` with the bars out of the way.
    pub fn suspend<R>(&self, print: impl FnOnce() -> R) -> R {
        self.both.suspend(print)
    }

    /// Takes the bars away.
    pub fn clear(&self) {
        self.epochs.finish_and_clear();
        self.steps.finish_and_clear();
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.clear();
    }
}

fn epoch_template(colour: bool) -> String {
    let paint = if colour { ".green" } else { "" };
    format!("epochs [{{bar:30{paint}}}] {{pos}}/{{len}}  {{elapsed}}")
}

fn step_template(colour: bool) -> String {
    let paint = if colour { ".cyan" } else { "" };
    format!("steps  [{{bar:30{paint}}}] {{pos}}/{{len}}  {{msg}}, {{eta}} left")
}

/// The loss and the speed of the epoch in progress.
fn message(progress: &Progress) -> String {
    let loss = progress.loss.map_or_else(String::new, |loss| format!("loss {loss:.4}, "));
    let speed = 1000.0 * progress.images as f64 / progress.train_ms;
    if speed.is_finite() { format!("{loss}{speed:.0} images/s") } else { format!("{loss}- images/s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_well_formed_and_plain_without_colour() {
        for colour in [false, true] {
            for template in [epoch_template(colour), step_template(colour)] {
                assert!(ProgressStyle::with_template(&template).is_ok(), "{template}");
                assert_eq!(template.contains(".green") || template.contains(".cyan"), colour);
            }
        }
    }

    #[test]
    fn the_message_has_loss_and_speed_and_survives_the_first_moment() {
        let mut progress =
            Progress { epoch: 1, epochs: 5, step: 10, steps: 938, images: 640, train_ms: 32.0, loss: Some(0.5) };
        assert_eq!(message(&progress), "loss 0.5000, 20000 images/s");
        (progress.loss, progress.images, progress.train_ms) = (None, 0, 0.0);
        assert_eq!(message(&progress), "- images/s");
    }
}
