//! One thin file a subcommand. Nothing below this module prints.

pub mod bench;
pub mod compare;
pub mod completions;
pub mod data;
pub mod demo;
pub mod doctor;
pub mod epoch_table;
pub mod eval;
pub mod interrupt;
pub mod load;
pub mod out;
pub mod peers;
pub mod predict;
pub mod predict_output;
pub mod report;
pub mod selftest;
pub mod terminal_picture;
pub mod train;
pub mod train_bars;
pub mod train_output;

use std::{error::Error as _, io::Write};

use crate::{
    Error, Result,
    cli::{DeviceArgs, TuneArgs},
    device::{Device, cuda::tune::TuneTime},
};

/// The device that the flags ask for, which tunes unless they say no, and one line that says which it is and why.
///
/// # Errors
/// When there is no such device.
pub fn open_tuned(args: &DeviceArgs, tune: TuneArgs) -> Result<(Device, String)> {
    let (device, chosen) = Device::open(&args.device, args.threads.map(|n| n as usize))?;
    if let Device::Cuda(cuda) = &device {
        cuda.set_autotune(!tune.no_autotune);
    }
    Ok((device, chosen))
}

/// What choosing tiles took so far.
pub fn tune_time(device: &Device) -> TuneTime {
    match device {
        Device::Cpu(_) => TuneTime::default(),
        Device::Cuda(cuda) => cuda.tune_time(),
    }
}

/// What choosing tiles took on `device` since `before`, in a few words; nothing when nothing was tuned.
pub fn tuned_since(device: &Device, before: TuneTime) -> Option<String> {
    let TuneTime { tuned, ms, .. } = tune_time(device).since(before);
    let kernels = if tuned == 1 { "kernel" } else { "kernels" };
    (tuned > 0).then(|| format!("the fastest tiles of {tuned} {kernels} found in {ms:.0} ms and remembered"))
}

/// Says on standard error what choosing tiles took since `before`, and what went wrong with it.
pub fn tell_tuning(device: &Device, before: TuneTime) {
    let Device::Cuda(cuda) = device else { return };
    let mut err = std::io::stderr().lock();
    // A closed standard error is nobody who could be told.
    if let Some(tuned) = tuned_since(device, before) {
        let _ = writeln!(err, "{tuned}");
    }
    while let Some(warning) = cuda.take_warning() {
        let _ = writeln!(err, "warning: {}", in_full(&warning));
    }
}

/// An error with its causes and its hint, in one line.
pub fn in_full(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    match error.hint_text() {
        Some(hint) => format!("{text} ({hint})"),
        None => text,
    }
}

/// Prints `error:`, its causes and `hint:` on standard error.
pub fn print_error(error: &Error) {
    let mut err = std::io::stderr().lock();
    // Nothing is left to tell when standard error itself is gone.
    let _ = writeln!(err, "error: {error}");
    let mut cause = error.source();
    while let Some(inner) = cause {
        let _ = writeln!(err, "  because: {inner}");
        cause = inner.source();
    }
    if let Some(hint) = error.hint_text() {
        let _ = writeln!(err, "hint: {hint}");
    }
}
