//! `metrics.jsonl` while a run writes it: one event a line, handed to the system at once, and cut back to the checkpoint
//! when a run goes on, so that no epoch stands in it twice.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::{
    metrics::{Event, read_metrics},
    observer::Observer,
};
use crate::{Error, Result, atomic, model::checkpoint::Position};

/// The open file. As an [`Observer`], it writes every event down.
///
/// Write an event before the checkpoint that comes after it: a kill between the two then repeats a little work, the
/// other way round it would leave an epoch out.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
    events: Vec<Event>,
    dropped: usize,
    skipped: usize,
}

impl MetricsLog {
    /// A new, empty file.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create_new(path).map_err(|source| Error::io("write the metrics to", path, source))?;
        Ok(MetricsLog { path: path.to_path_buf(), file, events: Vec::new(), dropped: 0, skipped: 0 })
    }

    /// The file of an earlier process, without the events after `position`, half-written lines and earlier ends.
    pub fn resume(path: &Path, position: &Position) -> Result<Self> {
        let (mut events, skipped) = if path.exists() { read_metrics(path)? } else { (Vec::new(), 0) };
        let before = events.len();
        events.retain(|event| is_within(event, position));
        let mut text = String::new();
        for event in &events {
            text.push_str(&event.to_line()?);
            text.push('\n');
        }
        atomic::write_atomic(path, |file| file.write_all(text.as_bytes()))?;
        let file = OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(|source| Error::io("write the metrics to", path, source))?;
        Ok(MetricsLog { path: path.to_path_buf(), file, dropped: before - events.len(), events, skipped })
    }

    /// The events so far, those of earlier processes included.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Events that [`MetricsLog::resume`] removed because the run goes on from before them.
    pub fn dropped(&self) -> usize {
        self.dropped
    }

    /// Lines that [`MetricsLog::resume`] removed because they were half-written or no events.
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// Appends an event.
    pub fn append(&mut self, event: &Event) -> Result<()> {
        let mut line = event.to_line()?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(|source| self.failed(source))?;
        self.events.push(event.clone());
        Ok(())
    }

    /// Flushes to the disk what was appended. Call it before a checkpoint is saved: it must not be newer than the metrics.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::io("write the metrics to", &self.path, source)
            .hint("is the disk full? Free some space, then go on with --resume")
    }
}

impl Observer for MetricsLog {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        self.append(event)
    }
}

/// Whether `event` happened at `position` or before. An end is not: the run goes on.
fn is_within(event: &Event, position: &Position) -> bool {
    match event {
        Event::Start(start) => start.resumed_at.is_none_or(|at| at <= (position.epoch, position.step)),
        Event::Step(step) => {
            step.epoch <= position.epoch || (step.epoch == position.epoch + 1 && step.step <= position.step)
        }
        Event::Epoch(epoch) => epoch.epoch <= position.epoch,
        Event::End(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        testing::{self, Folder},
        train::metrics::{End, Step},
    };

    fn step(epoch: u32, step: u64) -> Event {
        Event::Step(Step { epoch, step, loss: 0.5, lr: 0.02 })
    }

    fn epoch(epoch: u32) -> Event {
        Event::Epoch(testing::epoch(epoch, 0.5, 0.25, 0.9))
    }

    fn position(epoch: u32, step: u64) -> Position {
        Position { epoch, step, ..Position::default() }
    }

    /// Two epochs of 200 steps, then an interrupt in the third.
    fn story() -> Vec<Event> {
        vec![
            Event::Start(Box::new(testing::start())),
            step(1, 100),
            step(1, 200),
            epoch(1),
            step(2, 100),
            step(2, 200),
            epoch(2),
            step(3, 100),
            Event::End(End::of(&[], 1.0, true)),
        ]
    }

    #[test]
    fn a_resumed_run_keeps_what_its_checkpoint_covers_and_nothing_after_it() {
        let story = story();
        for (at, kept) in [
            (position(0, 0), vec![0]),
            (position(0, 150), vec![0, 1]),
            (position(1, 0), vec![0, 1, 2, 3]),
            (position(1, 100), vec![0, 1, 2, 3, 4]),
            (position(1, 200), vec![0, 1, 2, 3, 4, 5]),
            (position(2, 0), (0..7).collect()),
            (position(2, 199), (0..8).collect()),
        ] {
            let folder = Folder::new("log-resume");
            let path = folder.join("metrics.jsonl");
            let mut log = MetricsLog::create(&path).unwrap();
            for event in &story {
                log.append(event).unwrap();
            }
            drop(log);
            let expected: Vec<Event> = kept.iter().map(|&i: &usize| story[i].clone()).collect();
            let mut log = MetricsLog::resume(&path, &at).unwrap();
            assert_eq!(log.events(), expected, "{at:?}");
            assert_eq!((log.dropped(), log.skipped()), (story.len() - kept.len(), 0));
            log.append(&epoch(3)).unwrap();
            log.sync().unwrap();
            let (events, skipped) = read_metrics(&path).unwrap();
            assert_eq!((events.len(), skipped), (kept.len() + 1, 0));
            assert_eq!(folder.names(), ["metrics.jsonl"]);
        }
    }

    #[test]
    fn a_half_written_last_line_is_dropped_and_the_next_event_has_a_line_of_its_own() {
        let folder = Folder::new("log-half");
        let path = folder.join("metrics.jsonl");
        let (whole, half) = (epoch(1).to_line().unwrap(), epoch(2).to_line().unwrap());
        fs::write(&path, format!("{whole}\n{}", &half[..half.len() - 1])).unwrap();
        let mut log = MetricsLog::resume(&path, &position(2, 0)).unwrap();
        assert_eq!(log.skipped(), 1);
        log.append(&epoch(2)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{whole}\n{half}\n"));
    }

    #[test]
    fn a_new_log_never_overwrites_one_that_is_there() {
        let folder = Folder::new("log-new");
        let path = folder.join("metrics.jsonl");
        fs::write(&path, "kept").unwrap();
        assert!(MetricsLog::create(&path).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
    }

    #[test]
    fn a_run_whose_metrics_are_lost_can_go_on() {
        let folder = Folder::new("log-lost");
        let log = MetricsLog::resume(&folder.join("metrics.jsonl"), &position(2, 0)).unwrap();
        assert!(log.events().is_empty());
    }
}
