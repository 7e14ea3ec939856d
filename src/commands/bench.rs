//! `bench`: the layer alone. Sweeps shapes, precisions, passes, implementations and gates; checks each case against the f64
//! reference, then times it; writes a record a case as they come, and prints the tables.

use std::{path::PathBuf, sync::atomic::Ordering, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};

use super::{interrupt, out, peers};
use crate::{
    Error, Kind, Result,
    cli::BenchArgs,
    device::Device,
    measure::{
        case::Bench,
        peaks,
        peers::{self as scripts, PeerCase, Script},
        record::{Case, Origin, Peaks, Record, Writer},
        timer::Cache,
        work::Pass,
    },
    report::{layer_table, peer_table},
    swiglu::{self, Entry, Gates, Precision, reference::Dims},
};

/// The file of its records.
pub const FILE: &str = "bench.jsonl";
/// Where records go when nothing is said.
pub const FOLDER: &str = "reports/measured";

/// The scripts that measure peers on the same work.
const SCRIPTS: &[Script] = &[Script::TorchLayer];
/// The passes that they have.
const PEER_PASSES: [Pass; 3] = [Pass::Forward, Pass::StepDx, Pass::Step];

/// What is swept.
struct Sweep {
    shapes: Vec<Dims>,
    precisions: Vec<Precision>,
    passes: Vec<Pass>,
    caches: Vec<Cache>,
    entries: Vec<&'static Entry>,
    gates: Vec<Gates>,
}

/// Measures.
///
/// # Errors
/// When a case fails its check, a folder cannot be written, or the user stops it; what was measured stays.
pub fn run(args: BenchArgs) -> Result<()> {
    let (device, chosen) = super::open_tuned(&args.device, args.tune)?;
    let sweep = sweep(&args, &device)?;
    let wanted = peers::wanted(args.peers.as_deref(), "bench", SCRIPTS)?;
    let stop = interrupt::watch("stopping after this case; what was measured is kept")?;
    let folder = args.out.unwrap_or_else(|| PathBuf::from(FOLDER));
    let mut writer = Writer::append(&folder, FILE, Origin::of(&device))?;
    let bar = bar(sweep.shapes.len() * sweep.precisions.len() * sweep.passes.len() * sweep.caches.len());
    if !args.json {
        out::print_line(&format!("device: {chosen}"))?;
    }

    let mut cases = Vec::new();
    'all: for &precision in &sweep.precisions {
        bar.set_message(format!("peaks, {}", precision.name()));
        let peaks = peaks::measure(&device, precision)?;
        bar.suspend(|| tell_peaks(&peaks, args.json))?;
        keep(&mut writer, Record::Peaks(peaks.clone()), args.json, &bar)?;
        for &dims in &sweep.shapes {
            bar.set_message(format!("B,D,H = {dims}, {}: checking", precision.name()));
            let before = super::tune_time(&device);
            let mut bench = Bench::new(&device, &sweep.entries, &sweep.gates, dims, precision, args.seed)?;
            bar.suspend(|| super::tell_tuning(&device, before));
            for &pass in &sweep.passes {
                for &cache in &sweep.caches {
                    if stop.load(Ordering::Relaxed) {
                        break 'all;
                    }
                    bar.set_message(format!("B,D,H = {dims}, {}: {}", precision.name(), pass.name()));
                    for case in bench.time(pass, cache, &peaks)? {
                        keep(&mut writer, Record::Swiglu(Box::new(case.clone())), args.json, &bar)?;
                        cases.push(case);
                    }
                    bar.inc(1);
                }
            }
        }
    }
    bar.finish_and_clear();
    // Peers have no backward without its forward, and what a cold cache is they leave open.
    let passes: Vec<&str> = PEER_PASSES.iter().filter(|pass| sweep.passes.contains(pass)).map(|p| p.name()).collect();
    let mut found = Ok(Vec::new());
    if !wanted.is_empty() && !passes.is_empty() {
        let complete = |_, asked: &[_]| {
            let mut arguments = scripts::arguments(&device, &sweep.shapes, &sweep.precisions, asked, args.seed);
            arguments.push(("--pass", passes.join(",")));
            arguments
        };
        let named = args.peers.as_ref().is_some_and(|named| !named.is_empty());
        found = peers::measure(SCRIPTS, &wanted, named, complete, (&mut writer, args.json, &stop));
    }
    if !args.json {
        print(&cases, found.as_deref().unwrap_or_default(), writer.path())?;
    }
    outcome(&cases, stop.load(Ordering::Relaxed))?;
    found.map(|_| ())
}

fn outcome(cases: &[Case], stopped: bool) -> Result<()> {
    if cases.is_empty() && !stopped {
        return Err(Error::usage("there was nothing to measure: no implementation asked for has such a pass")
            .hint("fused-frozen makes no dWf: give it --pass forward,backward-dx,step-dx"));
    }
    let failed = cases.iter().filter(|case| !case.ok).count();
    if failed > 0 {
        return Err(Error::new(
            Kind::Selftest,
            format!("{failed} of {} cases are wrong and were not timed", cases.len()),
        )
        .hint("look for FAILED in the tables; mnist-swiglu selftest tells which pass is wrong at which shapes"));
    }
    if stopped {
        return Err(Error::new(Kind::Interrupted, "interrupted; the cases measured so far are kept"));
    }
    Ok(())
}

fn sweep(args: &BenchArgs, device: &Device) -> Result<Sweep> {
    let cpu = matches!(device, Device::Cpu(_));
    let or = |given: &[u32], cpu_default: &[usize], gpu_default: &[usize]| -> Vec<usize> {
        match given {
            [] => if cpu { cpu_default } else { gpu_default }.to_vec(),
            given => given.iter().map(|&n| n as usize).collect(),
        }
    };
    let batches = or(&args.batch, &[64, 512], &[64, 256, 1024]);
    let dims = or(&args.dim, &[512, 1024], &[2048, 4096]);
    let mut shapes = Vec::new();
    for &inputs in &dims {
        let hidden = if args.hidden.is_empty() { vec![inputs] } else { or(&args.hidden, &[], &[]) };
        for hidden in hidden {
            shapes.extend(batches.iter().map(|&batch| Dims { batch, inputs, hidden }));
        }
    }
    let precisions =
        if args.precision.is_empty() { Precision::of_device(device).to_vec() } else { args.precision.clone() };
    precisions.iter().try_for_each(|precision| precision.check(device))?;
    let entries = match args.swiglu.as_slice() {
        [] => swiglu::ALL.to_vec(),
        names => names.iter().map(|name| swiglu::find(name)).collect::<Result<_>>()?,
    };
    let gates = match args.gates.as_slice() {
        [] => vec![Gates::Save, Gates::Recompute],
        given => given
            .iter()
            .map(|gates| match gates {
                // Auto is one of the two: which, the layer says.
                Gates::Auto if gates.keeps(device, dims[0]) => Gates::Save,
                Gates::Auto => Gates::Recompute,
                named => *named,
            })
            .collect(),
    };
    let all_or = |given: &[Cache]| if given.is_empty() { vec![Cache::Warm, Cache::Cold] } else { given.to_vec() };
    Ok(Sweep {
        shapes,
        precisions,
        passes: if args.pass.is_empty() {
            vec![Pass::Forward, Pass::BackwardDx, Pass::Backward, Pass::StepDx, Pass::Step]
        } else {
            args.pass.clone()
        },
        caches: all_or(&args.cache),
        entries,
        gates,
    })
}

fn bar(length: usize) -> ProgressBar {
    // Our own template: the default style is the fallback that the type asks for.
    let style = ProgressStyle::with_template("{bar:24} {pos}/{len}  {eta} left  {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(length as u64).with_style(style.progress_chars("=> "));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn tell_peaks(peaks: &Peaks, json: bool) -> Result<()> {
    if json {
        return Ok(());
    }
    out::print_line(&format!(
        "peaks, {}: {:.3} TFLOP/s, memory {:.1} GB/s, cache {:.1} GB/s",
        peaks.precision.name(),
        peaks.tflops,
        peaks.memory_gbytes_per_s,
        peaks.cache_gbytes_per_s
    ))
}

fn keep(writer: &mut Writer, record: Record, json: bool, bar: &ProgressBar) -> Result<()> {
    let line = writer.write(record)?;
    if json { bar.suspend(|| out::print_line(&line.to_json()?)) } else { Ok(()) }
}

fn print(cases: &[Case], peers: &[PeerCase], path: &std::path::Path) -> Result<()> {
    let (cases, peers): (Vec<&Case>, Vec<&PeerCase>) = (cases.iter().collect(), peers.iter().collect());
    for table in layer_table::tables(&cases).into_iter().chain(peer_table::tables(&peers, &cases, &[])) {
        out::print_line(&format!("\n{}", table.text().trim_end()))?;
    }
    out::print_line(&format!("\nrecords  {}", path.display()))
}
