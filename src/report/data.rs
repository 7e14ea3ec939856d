//! The records of a report in order: of what was measured again the newest, every device under a name of its own.

use super::charts::joined;
use crate::{
    measure::{
        peers::{PeerCase, Timed},
        record::{Case, Origin, Peaks, Record, Records, Training},
        timer::Cache,
        work::Pass,
    },
    swiglu::Precision,
};

/// What charts, tables and advice are made from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Data {
    /// Passes of the layer.
    pub cases: Vec<Case>,
    /// Trainings of the network.
    pub trainings: Vec<Training>,
    /// Peers on the same work.
    pub peers: Vec<PeerCase>,
    /// What devices can do at best.
    pub peaks: Vec<Peaks>,
    /// Where the records come from.
    pub origins: Vec<Origin>,
    /// What was measured, each with where.
    sources: Vec<(Measured, Source)>,
}

/// What a record measured, for a chart to say which records it is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// The device, under its name here.
    pub device: String,
    /// Precision of the products.
    pub precision: Precision,
    /// What was timed; nothing where the record holds what the device can do at best.
    pub timed: Option<Timed>,
    /// Whether a peer was measured.
    pub peer: bool,
}

impl Measured {
    /// Whether it was measured on `device` in `precision`.
    pub fn is(&self, device: &str, precision: Precision) -> bool {
        self.device == device && self.precision == precision
    }
}

/// Machine and commit of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    machine: String,
    commit: String,
}

/// Adds what was measured; in the place of the same measured before, so that the order stays that of the first.
fn put<T>(all: &mut Vec<T>, new: T, same: impl Fn(&T, &T) -> bool) {
    match all.iter_mut().find(|old| same(old, &new)) {
        Some(old) => *old = new,
        None => all.push(new),
    }
}

impl Data {
    /// The records in order.
    pub fn of(records: &Records) -> Data {
        let mut data = Data::default();
        let mut models: Vec<(&str, &str)> = Vec::new();
        for line in &records.lines {
            let pair = (device(&line.record), line.origin.model.as_str());
            if !models.contains(&pair) {
                models.push(pair);
            }
        }
        for line in &records.lines {
            if !data.origins.contains(&line.origin) {
                data.origins.push(line.origin.clone());
            }
            let device = device(&line.record);
            // Two machines that call their device the same: their numbers must not be mixed.
            let several = models.iter().filter(|(name, _)| *name == device).count() > 1;
            let name = if several { format!("{device} of {}", line.origin.model) } else { device.to_owned() };
            let source = (measured(&line.record, name.clone()), source(&line.origin));
            if !data.sources.contains(&source) {
                data.sources.push(source);
            }
            data.add(&line.record, name);
        }
        data
    }

    fn add(&mut self, record: &Record, device: String) {
        match record {
            Record::Peaks(peaks) => {
                let peaks = Peaks { device, ..peaks.clone() };
                put(&mut self.peaks, peaks, |a, b| (&a.device, a.precision) == (&b.device, b.precision));
            }
            Record::Swiglu(case) => {
                let case = Case { device, ..(**case).clone() };
                put(&mut self.cases, case, same_case);
            }
            Record::Train(training) => {
                let mut training = (**training).clone();
                training.configuration.device = device;
                put(&mut self.trainings, training, |a, b| a.configuration == b.configuration);
            }
            Record::Peer(peer) => {
                let peer = PeerCase { device, ..(**peer).clone() };
                put(&mut self.peers, peer, PeerCase::same);
            }
        }
    }

    /// The machines and commits of the records that `of` chooses: `a GPU, CUDA 13.0; commits 0123456789 and 89abcdef01`.
    pub fn source(&self, of: impl Fn(&Measured) -> bool) -> String {
        let mut machines: Vec<(&str, Vec<String>)> = Vec::new();
        for (_, source) in self.sources.iter().filter(|(measured, _)| of(measured)) {
            match machines.iter_mut().find(|(machine, _)| *machine == source.machine) {
                Some((_, commits)) if commits.contains(&source.commit) => {}
                Some((_, commits)) => commits.push(source.commit.clone()),
                None => machines.push((&source.machine, vec![source.commit.clone()])),
            }
        }
        let said = |(machine, commits): &(&str, Vec<String>)| {
            format!("{machine}; commit{} {}", if commits.len() > 1 { "s" } else { "" }, joined(commits))
        };
        machines.iter().map(said).collect::<Vec<_>>().join("; ")
    }

    /// The devices and precisions that something was measured in, in the order of [`Precision::ALL`].
    pub fn settings(&self) -> Vec<(String, Precision)> {
        let cases = self.cases.iter().map(|case| (case.device.clone(), case.precision));
        let trainings = self.trainings.iter().map(|t| (t.configuration.device.clone(), t.configuration.precision));
        let all: Vec<_> = cases.chain(trainings).collect();
        let mut devices: Vec<&String> = Vec::new();
        for (device, _) in &all {
            if !devices.contains(&device) {
                devices.push(device);
            }
        }
        let pairs = devices.into_iter().flat_map(|device| Precision::ALL.iter().map(|&p| (device.clone(), p)));
        pairs.filter(|pair| all.contains(pair)).collect()
    }

    /// A suffix for the names of charts of one setting: nothing when there is only one.
    pub fn suffix(&self, device: &str, precision: Precision) -> String {
        let settings = self.settings();
        let several_devices = settings.iter().any(|(other, _)| other != device);
        let device: String = device.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        match (settings.len(), several_devices) {
            (..=1, _) => String::new(),
            (_, false) => format!("-{}", precision.name()),
            (_, true) => format!("-{device}-{}", precision.name()),
        }
    }

    /// The peaks of a device in a precision.
    pub fn peaks_of(&self, device: &str, precision: Precision) -> Option<&Peaks> {
        self.peaks.iter().find(|peaks| peaks.device == device && peaks.precision == precision)
    }

    /// The cases of one setting and pass, with warm caches.
    pub fn warm(&self, device: &str, precision: Precision, pass: Pass) -> Vec<&Case> {
        let of = |c: &&Case| c.device == device && c.precision == precision && c.pass == pass && c.cache == Cache::Warm;
        self.cases.iter().filter(of).collect()
    }
}

fn device(record: &Record) -> &str {
    match record {
        Record::Peaks(peaks) => &peaks.device,
        Record::Swiglu(case) => &case.device,
        Record::Train(training) => &training.configuration.device,
        Record::Peer(peer) => &peer.device,
    }
}

fn measured(record: &Record, device: String) -> Measured {
    let (precision, timed, peer) = match record {
        Record::Peaks(peaks) => (peaks.precision, None, false),
        Record::Swiglu(case) => (case.precision, Some(Timed::Pass(case.pass)), false),
        Record::Train(training) => (training.configuration.precision, Some(Timed::Epoch), false),
        Record::Peer(peer) => (peer.precision, Some(peer.pass), true),
    };
    Measured { device, precision, timed, peer }
}

fn source(origin: &Origin) -> Source {
    let Origin { model, threads, driver, commit, .. } = origin;
    let threads = if *threads > 0 { format!(", {threads} threads") } else { String::new() };
    let driver = driver.as_ref().map_or(String::new(), |driver| format!(", {driver}"));
    Source { machine: format!("{model}{threads}{driver}"), commit: commit.clone() }
}

/// Whether two cases measured the same thing.
fn same_case(a: &Case, b: &Case) -> bool {
    (&a.swiglu, &a.device, a.precision, a.pass) == (&b.swiglu, &b.device, b.precision, b.pass)
        && (a.gates, a.cache, shape(a)) == (b.gates, b.cache, shape(b))
}

/// B, D, H.
pub fn shape(case: &Case) -> (usize, usize, usize) {
    (case.batch, case.inputs, case.hidden)
}

/// `B = 64, D = H = 512`.
pub fn shape_name((batch, inputs, hidden): (usize, usize, usize)) -> String {
    if inputs == hidden {
        format!("B = {batch}, D = H = {inputs}")
    } else {
        format!("B = {batch}, D = {inputs}, H = {hidden}")
    }
}

/// Of each implementation at each shape, the case whose mode of gates is faster; cases that failed come as they are.
pub fn best_gates<'a>(cases: &[&'a Case]) -> Vec<&'a Case> {
    let mut best: Vec<&Case> = Vec::new();
    for &case in cases {
        let time = |case: &Case| case.median_ms.unwrap_or(f64::INFINITY);
        let same = |c: &&mut &Case| (&c.swiglu, shape(c)) == (&case.swiglu, shape(case));
        match best.iter_mut().find(same) {
            Some(other) if time(case) < time(other) => *other = case,
            Some(_) => {}
            None => best.push(case),
        }
    }
    best
}
