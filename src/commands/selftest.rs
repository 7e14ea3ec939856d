//! `selftest`: every implementation, precision, pass and way of keeping gates against the f64 reference, at ragged shapes,
//! on the device of the user's choice. A table, or one JSON object a check; exit code 1 when anything is wrong.

use crate::{
    Error, Kind, Result,
    cli::SelftestArgs,
    commands::out,
    device::Device,
    measure::check::{Case, Check, SHAPES, check_layer, gates_of},
    swiglu::{self, Entry, Precision, reference::Dims},
};

/// Runs the checks and prints them.
///
/// # Errors
/// When the device is missing, a shape cannot be read, or a check fails.
pub fn run(args: SelftestArgs) -> Result<()> {
    let (device, chosen) = Device::open(&args.device.device, args.device.threads.map(|n| n as usize))?;
    let entries: Vec<&Entry> = match args.swiglu.as_slice() {
        [] => swiglu::ALL.to_vec(),
        names => names.iter().map(|name| swiglu::find(name)).collect::<Result<_>>()?,
    };
    let shapes: Vec<Dims> = match args.shape.as_slice() {
        [] => SHAPES.to_vec(),
        texts => texts.iter().map(|text| parse_shape(text)).collect::<Result<_>>()?,
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
    let (mut total, mut failed) = (0, 0);
    for dims in shapes {
        for &precision in &precisions {
            let case = Case::in_precision(dims, args.seed, precision);
            prepare(&device, precision, &entries, &case)?;
            for &entry in &entries {
                for &gates in gates_of(entry) {
                    let checks = device.install(|| check_layer(entry, &device, precision, gates, &case))?;
                    total += checks.len();
                    failed += checks.iter().filter(|check| !check.ok).count();
                    print(&checks, args.json)?;
                }
            }
        }
    }
    if failed > 0 {
        return Err(Error::new(Kind::Selftest, format!("{failed} of {total} checks failed on {}", device.name()))
            .hint("results of the implementations marked FAILED cannot be trusted on this machine; please report it with this table"));
    }
    if !args.json {
        out::print_line(&format!("all {total} checks passed"))?;
    }
    Ok(())
}

/// Compiles the kernels of a case on all cores, rather than one after the other at their first launch.
fn prepare(device: &Device, precision: Precision, entries: &[&Entry], case: &Case) -> Result<()> {
    let Device::Cuda(cuda) = device else { return Ok(()) };
    cuda.prepare(|| {
        for &entry in entries {
            for &gates in gates_of(entry) {
                // Nothing runs, so every result is wrong, and none is looked at.
                check_layer(entry, device, precision, gates, case)?;
            }
        }
        Ok(())
    })
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
        "{:<18} {:<10} {:<9} {:>15}  {:<13} {:>9} {:>9}",
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
    let Check { swiglu, precision, gates, pass, batch, inputs, hidden, rel_err, bound, ok, .. } = check;
    let gates = format!("{gates:?}").to_lowercase();
    let shape = format!("{batch},{inputs},{hidden}");
    let verdict = if *ok { "" } else { "  FAILED" };
    format!(
        "{swiglu:<18} {:<10} {gates:<9} {shape:>15}  {pass:<13} {rel_err:>9.1e} {bound:>9.1e}{verdict}",
        precision.name()
    )
}
