//! `--peers` of `bench` and `compare`: which scripts to run, what to keep of what they say, and what to tell the user.

use std::{
    io::Write,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

use super::out;
use crate::{
    Error, Kind, Result,
    measure::{
        peers::{self, PYTHON, Peer, PeerCase, Said, Script},
        record::{Record, Writer},
    },
};

/// The peers that a command is asked for: none without the flag, those of its scripts when none is named.
///
/// # Errors
/// When one is named that the command does not have.
pub fn wanted(flag: Option<&[Peer]>, command: &str, scripts: &[Script]) -> Result<Vec<Peer>> {
    let mut here: Vec<Peer> = scripts.iter().flat_map(|script| script.peers()).copied().collect();
    match flag {
        None => Ok(Vec::new()),
        Some([]) => Ok(here),
        Some(named) => match named.iter().find(|peer| !here.contains(peer)) {
            Some(other) => {
                let names: Vec<&str> = here.iter().map(|peer| peer.name()).collect();
                Err(Error::usage(format!("--peers {}: {command} has no such peer", other.name()))
                    .hint(format!("{command} has {}", names.join(", "))))
            }
            None => {
                here.retain(|peer| named.contains(peer));
                Ok(here)
            }
        },
    }
}

/// Runs the scripts that measure `peers`, keeps their records and tells what is missing. `complete` gives the arguments of a
/// script for the peers that it is asked for.
///
/// # Errors
/// When a record cannot be kept, or `named` peers gave none.
pub fn measure(
    scripts: &[Script],
    peers: &[Peer],
    named: bool,
    complete: impl Fn(Script, &[Peer]) -> Vec<(&'static str, String)>,
    (writer, json, stop): (&mut Writer, bool, &AtomicBool),
) -> Result<Vec<PeerCase>> {
    let mut cases: Vec<PeerCase> = Vec::new();
    let mut problems: Vec<String> = Vec::new();
    let bar = spinner();
    for &script in scripts {
        let asked: Vec<Peer> = script.peers().iter().copied().filter(|peer| peers.contains(peer)).collect();
        if asked.is_empty() || stop.load(Ordering::Relaxed) {
            continue;
        }
        bar.set_message("peers: starting Python");
        peers::run(script, &complete(script, &asked), stop, &mut |said| {
            if let Some(note) = said.note() {
                bar.suspend(|| tell(&note, json))?;
                problems.push(note);
            }
            if let Said::Case(case) = said {
                bar.set_message(format!("peers: {} cases; {}", cases.len() + 1, case.name));
                let line = writer.write(Record::Peer(case.clone()))?;
                if json {
                    bar.suspend(|| out::print_line(&line.to_json()?))?;
                }
                cases.push(*case);
            }
            Ok(())
        })?;
    }
    bar.finish_and_clear();
    let absent = peers.iter().find(|peer| !cases.iter().any(|case| case.peer == **peer));
    match absent {
        Some(peer) if named && !stop.load(Ordering::Relaxed) => {
            let why = problems.last().map_or(String::new(), |problem| format!("; {problem}"));
            Err(Error::new(Kind::Device, format!("--peers {}: nothing was measured{why}", peer.name())).hint(format!(
                "install it for python3, or name a Python that has it in {PYTHON}; --peers alone leaves out what is missing"
            )))
        }
        _ => Ok(cases),
    }
}

/// Where people read, standard output; where a program reads that, standard error.
fn tell(note: &str, json: bool) -> Result<()> {
    if json {
        // Nothing is left to tell when standard error is gone.
        let _ = writeln!(std::io::stderr(), "{note}");
        return Ok(());
    }
    out::print_line(note)
}

fn spinner() -> ProgressBar {
    // Our own template: the default style is the fallback that the type asks for.
    let style = ProgressStyle::with_template("{spinner} {elapsed}  {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
        .tick_chars("-\\|/ ");
    let bar = ProgressBar::new_spinner().with_style(style);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_those_of_the_command_or_those_named() {
        let bench = [Script::TorchLayer];
        assert!(wanted(None, "bench", &bench).unwrap().is_empty());
        assert_eq!(
            wanted(Some(&[]), "bench", &bench).unwrap(),
            [Peer::Torch, Peer::TorchCompile, Peer::Gemm, Peer::Quack]
        );
        assert_eq!(wanted(Some(&[Peer::Gemm]), "bench", &bench).unwrap(), [Peer::Gemm]);
        let error = wanted(Some(&[Peer::Jax]), "bench", &bench).unwrap_err();
        assert!(error.to_string().contains("jax") && error.hint_text().unwrap().contains("torch-compile"), "{error}");
    }
}
