//! `demo`: a guided tour in chapters, for a lecture or a newcomer. What it shows of time, it measures as it goes; at the end
//! stands a report folder. Nothing is written before that.

mod keep;
mod layer;
mod page;
mod pause;
mod race;
mod results;

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use self::{
    page::{Page, WIDTH},
    pause::Enter,
    race::Finished,
};
use super::{compare::configuration, interrupt, out, train_output::Style};
use crate::{
    Error, Kind, Result,
    cli::{CompareArgs, DemoArgs, Preset, TuneArgs},
    data::{Dataset, Loading},
    device::Device,
    measure::{
        case::Bench,
        peaks,
        record::{Case, Origin, Peaks, Record},
        timer::Cache,
        work::Pass,
    },
    model::persistent::Steps,
    swiglu::{self, Gates, reference::Dims},
    train::footprint::Footprint,
};

/// The chapters.
const CHAPTERS: [&str; 7] = [
    "The layer and its shapes",
    "The ways to run it",
    "A race",
    "What frozen means",
    "Where the time goes",
    "Which one to use here",
    "Where to read on",
];

/// The first chapter that shows the race, and the first that shows times of the layer alone.
const RACE: u32 = 3;
const LAYER: u32 = 5;

/// Images a step.
const BATCH: u32 = 64;

/// Shows the tour.
///
/// # Errors
/// When a flag makes no sense, the data is missing, or the user stops it ([`Kind::Interrupted`]).
pub fn run(args: DemoArgs) -> Result<()> {
    let begin = Instant::now();
    if args.pause && !io::stdin().is_terminal() {
        return Err(Error::usage("--pause waits for a key, and standard input is not a terminal")
            .hint("run it in a terminal, or leave --pause out"));
    }
    let place = keep::place(args.out.as_deref())?;
    let loading = Loading::start(&args.data); // beside the opening of the device
    let (device, chosen) = Device::open(&args.device.device, args.device.threads.map(|n| n as usize))?;
    args.precision.check(&device)?;
    let width = args.width.unwrap_or(if matches!(device, Device::Cuda(_)) { 2048 } else { 256 });
    let compare = compare_args(&args, width);
    for entry in swiglu::ALL {
        Footprint::check(&configuration(&compare, entry, &device, Steps::Launches)?, &device)?;
    }
    let dataset = loading.finish()?;
    let stop = interrupt::watch("stopping")?;
    let tour = Tour {
        compare,
        dims: Dims { batch: BATCH as usize, inputs: width as usize, hidden: width as usize },
        bold: bold(),
        args,
        device,
        dataset,
        stop: &stop,
        place,
        loading: begin.elapsed(),
    };
    tour.run(&chosen, begin)
}

/// Interrupted: nothing was written.
fn interrupted() -> Error {
    Error::new(Kind::Interrupted, "interrupted; nothing was written")
}

/// Whether headings may be bold: as for colours, but of standard output.
fn bold() -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    io::stdout().is_terminal() && set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb")
}

/// The race in the words of `compare`, of which it is a short one.
fn compare_args(args: &DemoArgs, width: u32) -> CompareArgs {
    CompareArgs {
        swiglu: Vec::new(),
        preset: Preset::Default,
        width: Some(width),
        hidden: None,
        batch_size: Some(BATCH),
        epochs: args.epochs,
        gates: Gates::Auto,
        precision: args.precision,
        steps: vec![Steps::Launches],
        seed: args.seed,
        peers: None,
        tune: TuneArgs::default(),
        out: None,
        json: false,
        data: args.data.clone(),
        device: args.device.clone(),
    }
}

struct Tour<'a> {
    args: DemoArgs,
    compare: CompareArgs,
    dims: Dims,
    device: Device,
    dataset: Dataset,
    stop: &'a AtomicBool,
    place: PathBuf,
    /// Time up to here: device and data.
    loading: Duration,
    bold: bool,
}

impl Tour<'_> {
    fn run(&self, chosen: &str, begin: Instant) -> Result<()> {
        self.show(|page| {
            page.text(&format!("mnist-swiglu, a tour in {} chapters", CHAPTERS.len()));
            page.text(&format!("device: {chosen}"));
            Ok(())
        })?;
        let (mut finished, mut layer) = (Vec::new(), None);
        let last = CHAPTERS.len() as u32;
        let enter = self.args.pause.then(|| Enter::of(io::BufReader::new(io::stdin())));
        for chapter in self.args.chapter..=last {
            if let Some(enter) = enter.as_ref().filter(|_| chapter > self.args.chapter) {
                enter.wait(&mut io::stderr(), CHAPTERS[chapter as usize - 1], || self.go_on())?;
            }
            if chapter > RACE && finished.is_empty() {
                out::print_line(&format!("\nChapter {chapter} shows what chapter {RACE} measures, so first:"))?;
                finished = self.chapter_race()?;
            }
            self.title(chapter)?;
            match chapter {
                1 => self.show(|page| {
                    layer::shapes(page, self.dims, self.args.precision);
                    Ok(())
                })?,
                2 => self.show(|page| layer::ways(page, &self.device, self.dims, self.args.precision))?,
                RACE => finished = self.race()?,
                4 => self.show(|page| {
                    results::frozen(page, &finished);
                    Ok(())
                })?,
                _ => {
                    let (_, cases) = match &mut layer {
                        Some(measured) => &*measured,
                        empty => empty.insert(self.measure(chapter)?),
                    };
                    match chapter {
                        LAYER => self.show(|page| {
                            let keeps =
                                Gates::Auto.keeps(&self.device.with_precision(self.args.precision), self.dims.inputs);
                            results::pieces(page, &finished, cases, keeps);
                            Ok(())
                        })?,
                        6 => self.show(|page| {
                            results::advice(page, &finished, cases);
                            Ok(())
                        })?,
                        _ => {}
                    }
                }
            }
            self.go_on()?;
        }
        if let Some((peaks, cases)) = layer {
            self.report(&finished, peaks, cases, begin)?;
        }
        Ok(())
    }

    fn go_on(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) { Err(interrupted()) } else { Ok(()) }
    }

    fn title(&self, chapter: u32) -> Result<()> {
        let name = CHAPTERS[chapter as usize - 1];
        let text = format!("-- {chapter} of {}: {name} ", CHAPTERS.len());
        let mut page = Page::new(self.bold);
        page.blank();
        page.heading(&format!("{text}{}", "-".repeat(WIDTH.saturating_sub(text.len()))));
        out::print_line(page.into_text().trim_end_matches('\n'))
    }

    fn show(&self, fill: impl FnOnce(&mut Page) -> Result<()>) -> Result<()> {
        let mut page = Page::new(self.bold);
        fill(&mut page)?;
        out::print_line(page.into_text().trim_end_matches('\n'))
    }

    /// The race with its heading, where another chapter needs it.
    fn chapter_race(&self) -> Result<Vec<Finished>> {
        self.title(RACE)?;
        self.race()
    }

    fn race(&self) -> Result<Vec<Finished>> {
        let config = configuration(&self.compare, swiglu::ALL[0], &self.device, Steps::Launches)?;
        self.show(|page| {
            page.text(&format!(
                "All {} train the same network from the same weights (seed {}), {} images a step, {} epochs each. They \
                 take turns; who has trained for the least time goes next. So all have had the same time at any moment, and \
                 the bars show how far it took them.",
                swiglu::ALL.len(),
                config.seed,
                config.batch_size,
                config.epochs
            ));
            page.blank();
            Ok(())
        })?;
        let finished = race::run(&self.compare, &self.device, &self.dataset, self.loading, self.stop)?;
        self.show(|page| {
            if !matches!(Style::detect(false, false), Style::Bars { .. }) {
                page.blank();
            }
            race::standings(page, &finished);
            Ok(())
        })?;
        Ok(finished)
    }

    /// The layer alone, each pass of each implementation, checked and timed; and the peaks beside them.
    fn measure(&self, chapter: u32) -> Result<(Peaks, Vec<Case>)> {
        if chapter > LAYER {
            out::print_line(&format!("Chapter {chapter} needs times of the layer alone, so they are measured first."))?;
        }
        let passes = [Pass::Forward, Pass::BackwardDx, Pass::StepDx, Pass::Step];
        // Our own template: the default style is the fallback that the type asks for.
        let style = ProgressStyle::with_template("measuring [{bar:30}] {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        let bar = ProgressBar::new(passes.len() as u64 + 2).with_style(style);
        bar.enable_steady_tick(Duration::from_millis(100));
        let precision = self.args.precision;
        bar.set_message("what this device can do at best");
        let peaks = peaks::measure(&self.device, precision)?;
        bar.inc(1);
        self.go_on()?;
        bar.set_message("checking against f64");
        let gates = [Gates::Save, Gates::Recompute];
        let mut bench = Bench::new(&self.device, swiglu::ALL, &gates, self.dims, precision, self.args.seed)?;
        bar.inc(1);
        let mut cases = Vec::new();
        for pass in passes {
            self.go_on()?;
            bar.set_message(pass.name());
            cases.extend(bench.time(pass, Cache::Warm, &peaks)?);
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok((peaks, cases))
    }

    /// Chapter 7, after its heading.
    fn report(&self, finished: &[Finished], peaks: Peaks, cases: Vec<Case>, begin: Instant) -> Result<()> {
        let mut records = vec![Record::Peaks(peaks)];
        records.extend(cases.into_iter().map(|case| Record::Swiglu(Box::new(case))));
        records.extend(finished.iter().map(|one| Record::Train(Box::new(one.training.clone()))));
        let number = records.len();
        self.go_on()?;
        keep::write(&self.place, Origin::of(&self.device), records)?;
        self.show(|page| {
            page.text(&format!("The {number} records of this tour, and a page with their charts and tables:"));
            page.blank();
            page.line(&format!("  {}", self.place.join("index.html").display()));
            page.blank();
            page.text("More shapes, more epochs, your own network:");
            page.blank();
            page.line("  mnist-swiglu bench      the layer alone, over shapes and precisions");
            page.line("  mnist-swiglu compare    whole trainings side by side");
            page.line("  mnist-swiglu report     a page of all that");
            page.line("  mnist-swiglu train      a network to keep");
            page.blank();
            page.line(&format!("The tour took {:.0} seconds.", begin.elapsed().as_secs_f64()));
            Ok(())
        })
    }
}
