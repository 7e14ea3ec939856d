//! How a run shows itself: bars on a terminal, plain lines elsewhere, nothing with `--quiet`; JSON objects on standard
//! output with `--json`, else the table of epochs there at the end.
//!
//! A reader that goes away (`| head -1`) ends the output, not the training.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
};

use super::{epoch_table as words, train_bars::Bars};
use crate::{
    Error, Result,
    train::{
        metrics::{Epoch, Event},
        observer::{Observer, Progress},
        trainer::DryRun,
    },
};

/// How progress is shown on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Two bars; in colour or not.
    Bars {
        /// Whether colours may be used.
        colour: bool,
    },
    /// A line now and then.
    Lines,
    /// Nothing.
    Silent,
}

impl Style {
    /// The style for this process: flags, the terminal, `NO_COLOR` and `TERM`.
    pub fn detect(quiet: bool, json: bool) -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        Self::choose(
            quiet,
            json,
            io::stderr().is_terminal(),
            set("NO_COLOR").is_some(),
            set("TERM").is_some_and(|term| term == "dumb"),
        )
    }

    fn choose(quiet: bool, json: bool, terminal: bool, no_color: bool, dumb: bool) -> Self {
        match (quiet, terminal && !dumb) {
            (true, _) => Style::Silent,
            (false, true) => Style::Bars { colour: !no_color },
            // A program reads standard output then, and standard error goes to its log.
            (false, false) if json => Style::Silent,
            (false, false) => Style::Lines,
        }
    }
}

/// An [`Observer`] that shows what happens to a person or a program.
pub struct TrainOutput<Out: Write, Log: Write> {
    out: Out,
    log: Log,
    json: bool,
    bars: Option<Bars>,
    lines: bool,
    out_open: bool,
    epochs: u32,
    steps: u64,
}

impl TrainOutput<io::Stdout, io::Stderr> {
    /// Output of this process.
    pub fn new(quiet: bool, json: bool) -> Self {
        Self::with(io::stdout(), io::stderr(), Style::detect(quiet, json), json)
    }
}

impl<Out: Write, Log: Write> TrainOutput<Out, Log> {
    /// Results and JSON go to `out`, progress to `log`; bars draw on standard error themselves.
    pub fn with(out: Out, log: Log, style: Style, json: bool) -> Self {
        TrainOutput {
            out,
            log,
            json,
            bars: match style {
                Style::Bars { colour } => Some(Bars::new(colour)),
                Style::Lines | Style::Silent => None,
            },
            lines: style == Style::Lines,
            out_open: true,
            epochs: 0,
            steps: 0,
        }
    }

    /// The table of a run's epochs, and where its files are; with `--json`, the events have said it all.
    pub fn finish(
        &mut self,
        epochs: &[Epoch],
        folder: &Path,
        checkpoint: Option<&Path>,
        chart: Option<&Path>,
    ) -> Result<()> {
        self.bars = None;
        if self.json {
            return Ok(());
        }
        let mut text = String::new();
        if !epochs.is_empty() {
            text.push_str(&words::table(epochs));
            text.push('\n');
        }
        let files = [("run folder", Some(folder)), ("checkpoint", checkpoint), ("chart", chart)];
        for (name, path) in files {
            if let Some(path) = path {
                text.push_str(&format!("{name:<10}  {}\n", path.display()));
            }
        }
        self.print(&text)
    }

    /// What a dry run would train, and how its first step went.
    ///
    /// # Errors
    /// When standard output fails.
    pub fn dry_run(&mut self, start: &Event, outcome: &DryRun) -> Result<()> {
        if self.json {
            let line = serde_json::to_value(outcome).map(|mut value| {
                value["event"] = "dry_run".into();
                value
            });
            let line = line.map_err(|e| Error::new(crate::Kind::Io, "cannot write an event as JSON").because(e))?;
            return self.print(&format!("{}\n{line}\n", start.to_line()?));
        }
        let DryRun { loss, step_ms, infer_ms, batch, infer_images } = outcome;
        self.print(&format!(
            "dry run: one step of {batch} images in {step_ms:.2} ms, loss {loss:.4}; {infer_images} test images in {infer_ms:.2} ms; \
             nothing was written\n"
        ))
    }

    /// Writes to `out` until its reader goes away.
    fn print(&mut self, text: &str) -> Result<()> {
        if !self.out_open {
            return Ok(());
        }
        let out = &mut self.out;
        let mut write = || out.write_all(text.as_bytes()).and_then(|()| out.flush());
        let written = match &self.bars {
            Some(bars) => bars.suspend(write),
            None => write(),
        };
        match written {
            Err(source) if source.kind() == io::ErrorKind::BrokenPipe => {
                self.out_open = false;
                Ok(())
            }
            written => written.map_err(|source| Error::io("write to", Path::new("standard output"), source)),
        }
    }

    /// Tells a person. Nothing can be told when that fails, and training is worth more.
    fn tell(&mut self, line: &str) {
        if let Some(bars) = &self.bars {
            bars.tell(line);
        } else if self.lines && writeln!(self.log, "{line}").is_err() {
            self.lines = false;
        }
    }
}

impl<Out: Write, Log: Write> Observer for TrainOutput<Out, Log> {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Start(start) => {
                (self.epochs, self.steps) = (start.configuration.epochs, start.steps_per_epoch);
                self.tell(&words::start_line(start));
            }
            // Bars show it already.
            Event::Step(step) if self.lines => self.tell(&words::step_line(step, self.epochs, self.steps)),
            Event::Step(_) => {}
            Event::Epoch(epoch) => self.tell(&words::epoch_line(epoch, self.epochs)),
            Event::End(end) => {
                if let Some(bars) = &self.bars {
                    bars.clear();
                }
                self.tell(&words::end_line(end));
            }
        }
        if self.json {
            self.print(&(event.to_line()? + "\n"))?;
        }
        Ok(())
    }

    fn on_progress(&mut self, progress: &Progress) {
        if let Some(bars) = &self.bars {
            bars.show(progress);
        }
    }

    fn on_message(&mut self, message: &str) {
        self.tell(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        testing,
        train::metrics::{End, Step},
    };

    fn story() -> Vec<Event> {
        let epoch = testing::epoch(1, 0.25, 0.125, 0.9375);
        vec![
            Event::Start(Box::new(testing::start())),
            Event::Step(Step { epoch: 1, step: 100, loss: 0.5, lr: 0.02 }),
            Event::Epoch(epoch.clone()),
            Event::End(End::of(&[epoch], 2000.0, false)),
        ]
    }

    /// What goes to standard output and standard error.
    fn tell(style: Style, json: bool) -> (String, String) {
        let (mut out, mut log) = (Vec::new(), Vec::new());
        let mut output = TrainOutput::with(&mut out, &mut log, style, json);
        output.on_message("device: cpu");
        for event in story() {
            output.on_event(&event).unwrap();
        }
        let epochs = [testing::epoch(1, 0.25, 0.125, 0.9375)];
        let chart = Some(Path::new("r/curves.svg"));
        output.finish(&epochs, Path::new("r"), Some(Path::new("r/c.safetensors")), chart).unwrap();
        (String::from_utf8(out).unwrap(), String::from_utf8(log).unwrap())
    }

    const TABLE: &str = "\
epoch  train loss  test loss  test accuracy  train ms  inference ms  images/s
    1      0.2500     0.1250        93.75 %    1500.5          40.2    40,000

run folder  r
checkpoint  r/c.safetensors
chart       r/curves.svg
";

    #[test]
    fn lines_go_to_standard_error_and_the_table_to_standard_output() {
        let (out, log) = tell(Style::Lines, false);
        assert_eq!(out, TABLE);
        let lines: Vec<&str> = log.lines().collect();
        assert_eq!(lines.len(), 5, "{log}");
        assert_eq!((lines[0], lines[2]), ("device: cpu", "epoch 1/5, step 100/938: loss 0.5000, lr 0.02000"));
        assert!(lines[1].starts_with("fused-frozen on cpu") && lines[3].starts_with("epoch 1/5: train loss"));
        assert!(lines[4].starts_with("done: 1 epoch"));
    }

    #[test]
    fn quiet_leaves_the_table_alone() {
        assert_eq!(tell(Style::Silent, false), (TABLE.to_owned(), String::new()));
    }

    #[test]
    fn json_is_the_lines_of_the_metrics_and_nothing_else() {
        let expected: String = story().iter().map(|event| event.to_line().unwrap() + "\n").collect();
        assert_eq!(tell(Style::Silent, true), (expected, String::new()));
    }

    #[test]
    fn the_style_follows_flags_terminal_and_environment() {
        let styles = [
            ((false, false, true, false, false), Style::Bars { colour: true }),
            ((false, false, true, true, false), Style::Bars { colour: false }),
            ((false, false, true, false, true), Style::Lines),
            ((false, false, false, false, false), Style::Lines),
            ((true, false, true, false, false), Style::Silent),
            ((false, true, true, false, false), Style::Bars { colour: true }),
            ((false, true, false, false, false), Style::Silent),
        ];
        for ((quiet, json, terminal, no_color, dumb), style) in styles {
            assert_eq!(Style::choose(quiet, json, terminal, no_color, dumb), style);
        }
    }

    /// Fails every write in this way, and counts them.
    struct Closed(io::ErrorKind, u32);

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            self.1 += 1;
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_goes_away_ends_the_output_and_not_the_training() {
        let (mut out, mut log) = (Closed(io::ErrorKind::BrokenPipe, 0), Closed(io::ErrorKind::BrokenPipe, 0));
        let mut output = TrainOutput::with(&mut out, &mut log, Style::Lines, true);
        for event in story() {
            output.on_event(&event).unwrap();
        }
        assert_eq!((out.1, log.1), (1, 1));
    }

    #[test]
    fn results_that_cannot_be_written_are_an_error() {
        let mut output = TrainOutput::with(Closed(io::ErrorKind::StorageFull, 0), Vec::new(), Style::Silent, true);
        let error = output.on_event(&story()[0]).unwrap_err();
        assert_eq!(error.to_string(), "cannot write to standard output");
    }
}
