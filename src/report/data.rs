//! The records of a report in order: of what was measured again the newest, every device under a name of its own.

use crate::{
    measure::{
        peers::PeerCase,
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
    /// Names of devices, each with the machines and commits that measured them.
    sources: Vec<(String, Vec<String>)>,
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
            data.add_source(&name, source(&line.origin));
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

    fn add_source(&mut self, device: &str, source: String) {
        match self.sources.iter_mut().find(|(name, _)| name == device) {
            Some((_, sources)) if sources.contains(&source) => {}
            Some((_, sources)) => sources.push(source),
            None => self.sources.push((device.into(), vec![source])),
        }
    }

    /// Machine and commit behind the numbers of `device`.
    pub fn source(&self, device: &str) -> String {
        self.sources.iter().find(|(name, _)| name == device).map_or(String::new(), |(_, sources)| sources.join("; "))
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

fn source(origin: &Origin) -> String {
    let Origin { model, threads, driver, commit, .. } = origin;
    let threads = if *threads > 0 { format!(", {threads} threads") } else { String::new() };
    let driver = driver.as_ref().map_or(String::new(), |driver| format!(", {driver}"));
    format!("{model}{threads}{driver}; commit {commit}")
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
