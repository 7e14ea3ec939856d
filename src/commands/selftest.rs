//! `selftest`: every implementation, precision, pass and way of keeping gates against the f64 reference, at ragged shapes, and
//! whole steps of training, on the device of the user's choice. A table, or one JSON object a check; exit code 1 when anything is wrong.

use crate::{
    Error, Kind, Result,
    cli::SelftestArgs,
    commands::out,
    device::Device,
    measure::check::{
        Case, Check, LARGE_SHAPES, SHAPES, check_layer, gates_of,
        training::{GPU_NETWORKS, NETWORKS, SMALL_NETWORKS, TrainingCase, check_training},
    },
    swiglu::{self, Entry, Gates, Precision, reference::Dims},
};

/// Runs the checks and prints them.
///
/// # Errors
/// When the device is missing, a shape cannot be read, or a check fails.
pub fn run(args: SelftestArgs) -> Result<()> {
    let (device, chosen) = super::open_tuned(&args.device, args.tune)?;
    let entries: Vec<&'static Entry> = match args.swiglu.as_slice() {
        [] => swiglu::ALL.to_vec(),
        names => names.iter().map(|name| swiglu::find(name)).collect::<Result<_>>()?,
    };
    // Whoever names shapes is after the layer.
    let networks = || [NETWORKS, SMALL_NETWORKS].concat();
    let (shapes, networks): (Vec<Dims>, Vec<_>) = match args.shape.as_slice() {
        [] => match device {
            Device::Cpu(_) => (SHAPES.to_vec(), networks()),
            Device::Cuda(_) => ([SHAPES, LARGE_SHAPES].concat(), [&networks()[..], GPU_NETWORKS].concat()),
        },
        texts => (texts.iter().map(|text| parse_shape(text)).collect::<Result<_>>()?, Vec::new()),
    };
    let precisions: Vec<Precision> = match args.precision.as_slice() {
        [] => Precision::of_device(&device).to_vec(),
        asked => asked.to_vec(),
    };
    precisions.iter().try_for_each(|precision| precision.check(&device))?;
    if !args.json {
        out::print_line(&format!("device: {chosen}"))?;
        out::print_line(&header())?;
    }
    let mut count = Count { json: args.json, total: 0, failed: 0 };
    for dims in shapes {
        for &precision in &precisions {
            let case = Case::in_precision(dims, args.seed, precision);
            count
                .check(&device, &entries, true, |entry, gates| check_layer(entry, &device, precision, gates, &case))?;
        }
    }
    for (dims, depth) in networks {
        let case = TrainingCase::new(dims, depth, args.seed);
        for &precision in &precisions {
            count.check(&device, &entries, false, |entry, gates| {
                check_training(entry, &device, precision, gates, &case)
            })?;
        }
    }
    let Count { total, failed, .. } = count;
    if failed > 0 {
        return Err(Error::new(Kind::Selftest, format!("{failed} of {total} checks failed on {}", device.name()))
            .hint("results of the implementations marked FAILED cannot be trusted on this machine; please report it with this table"));
    }
    if !args.json {
        out::print_line(&format!("all {total} checks passed"))?;
    }
    Ok(())
}

/// Checks made, and of those the failed ones.
struct Count {
    json: bool,
    total: usize,
    failed: usize,
}

impl Count {
    /// Makes and prints the checks of every implementation and way of keeping gates. On a GPU their kernels are compiled
    /// before, on all cores, rather than one after the other at their first launch; with `tune` their tiles are those that other
    /// commands would take.
    fn check(
        &mut self,
        device: &Device,
        entries: &[&'static Entry],
        tune: bool,
        check: impl Fn(&'static Entry, Gates) -> Result<Vec<Check>> + Sync,
    ) -> Result<()> {
        let all = || entries.iter().flat_map(|&entry| gates_of(entry).iter().map(move |&gates| (entry, gates)));
        if let Device::Cuda(cuda) = device {
            // Nothing runs, so every result is wrong, and none is looked at.
            let plan = || all().try_for_each(|(entry, gates)| check(entry, gates).map(|_| ()));
            if tune {
                let before = super::tune_time(device);
                cuda.tune(plan)?;
                super::tell_tuning(device, before);
            }
            cuda.prepare(plan)?;
        }
        for (entry, gates) in all() {
            let checks = check(entry, gates)?;
            self.total += checks.len();
            self.failed += checks.iter().filter(|check| !check.ok).count();
            print(&checks, self.json)?;
        }
        Ok(())
    }
}

fn parse_shape(text: &str) -> Result<Dims> {
    let numbers: Option<Vec<usize>> =
        text.split(',').map(|n| n.trim().parse().ok().filter(|n| (1..=65_536).contains(n))).collect();
    match numbers.as_deref() {
        Some(&[batch, inputs, hidden]) if batch * inputs.max(hidden) <= 1 << 28 && inputs * hidden <= 1 << 28 => {
            Ok(Dims { batch, inputs, hidden })
        }
        Some([_, _, _]) => Err(Error::usage(format!("--shape {text} is too large for the reference"))
            .hint("keep B x D, B x H and D x H below 268 million")),
        _ => Err(Error::usage(format!("--shape {text} is not three numbers B,D,H from 1 to 65536"))
            .hint("for example --shape 127,129,65")),
    }
}

fn header() -> String {
    format!(
        "{:<18} {:<13} {:<9} {:>15}  {:<18} {:>9} {:>9}",
        "swiglu", "precision", "gates", "B,D,H", "pass", "error", "bound"
    )
}

fn print(checks: &[Check], json: bool) -> Result<()> {
    for check in checks {
        if json {
            let line = serde_json::to_string(check)
                .map_err(|e| Error::new(Kind::Io, "cannot write a check as JSON").because(e))?;
            out::print_line(&line)?;
        } else {
            out::print_line(&row(check))?;
        }
    }
    Ok(())
}

fn row(check: &Check) -> String {
    let Check { swiglu, precision, gates, pass, batch, inputs, hidden, depth, parameter, rel_err, bound, ok, .. } =
        check;
    let gates = format!("{gates:?}").to_lowercase();
    let shape = format!("{batch},{inputs},{hidden}");
    let pass = depth.map_or((*pass).to_string(), |depth| format!("{pass} x{depth}"));
    let verdict = match (ok, parameter) {
        (true, _) => String::new(),
        (false, None) => "  FAILED".into(),
        (false, Some(parameter)) => format!("  FAILED ({parameter})"),
    };
    format!(
        "{swiglu:<18} {:<13} {gates:<9} {shape:>15}  {pass:<18} {rel_err:>9.1e} {bound:>9.1e}{verdict}",
        precision.name()
    )
}
