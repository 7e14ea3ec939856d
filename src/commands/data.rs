//! `data verify` tells what stands where and whether it is right; `data fetch` downloads a data set.

use std::{
    env,
    io::{self, Write},
    path::{Path, PathBuf},
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::{
    Error, Kind, Result,
    cli::{DataAction, DataArgs, DataCommand},
    data::{
        check::{self, FileCheck},
        fetch::{self, Event},
        find::{self, Found},
        sets::{self, Published},
    },
};

/// Runs `data`.
pub fn run(command: DataCommand) -> Result<()> {
    match command.action {
        DataAction::Verify { json, data } => verify(&data, json),
        DataAction::Fetch { name, to, force } => fetch(&name, to, force),
    }
}

fn verify(args: &DataArgs, json: bool) -> Result<()> {
    let found = match find::find(&args.dataset, args.data_dir.as_deref()) {
        Ok(found) => found,
        Err(error) => {
            if json {
                let none = json!({"dataset": args.dataset, "dir": null, "ok": false, "checksums_known": false,
                    "files": [], "problem": error.to_string()});
                print(&none.to_string())?;
            }
            return Err(error);
        }
    };
    let checks = check::check(&found);
    let wrong = checks.iter().filter(|check| check.problem.is_some()).count();
    if json {
        let files: Vec<Value> = checks.iter().map(|check| record(&found, check)).collect();
        let all = json!({"dataset": found.name, "dir": found.dir, "ok": wrong == 0,
            "checksums_known": found.published.is_some(), "files": files, "problem": null});
        print(&all.to_string())?;
    } else {
        for check in &checks {
            print(&line(check))?;
        }
        if found.published.is_none() {
            print("no checksums are known for this directory: format, lengths, counts and labels were checked")?;
        }
    }
    let Some(first) = checks.iter().find_map(|check| check.problem.as_ref()) else {
        return Ok(());
    };
    let dir = found.dir.display();
    let summary = Error::new(Kind::Data, format!("{wrong} of the 4 files of {} in {dir} are wrong", found.name));
    Err(match first.hint_text() {
        Some(hint) => summary.hint(hint),
        None => summary,
    })
}

/// One line: path, images, size, SHA-256, and ok or what is wrong.
fn line(check: &FileCheck) -> String {
    let mut line = match &check.path {
        Some(path) => path.display().to_string(),
        None => check.spec.name.to_owned(),
    };
    if let (Some(idx), Some(sha256)) = (&check.idx, &check.sha256) {
        line += &format!("  {} {}  {} bytes  sha256 {sha256}", idx.count, idx.content, idx.bytes.len());
    }
    match &check.problem {
        Some(problem) => line + &format!("  WRONG: {problem}"),
        None => line + "  ok",
    }
}

fn record(found: &Found, check: &FileCheck) -> Value {
    json!({
        "file": check.spec.name,
        "path": check.path,
        "content": check.spec.content.to_string(),
        "count": check.idx.as_ref().map(|idx| idx.count),
        "bytes": check.idx.as_ref().map(|idx| idx.bytes.len()),
        "sha256": check.sha256,
        "expected_sha256": found.published.and_then(|set| set.sha256_of(check.spec)),
        "ok": check.problem.is_none(),
        "problem": check.problem.as_ref().map(Error::to_string),
    })
}

fn fetch(name: &str, to: Option<PathBuf>, force: bool) -> Result<()> {
    let set = sets::published(name).ok_or_else(|| Error::usage(format!("no data set is called '{name}'")))?;
    let user = find::user_dir().map(|dir| dir.join(set.folder));
    let dir = to.or(user).ok_or_else(|| {
        Error::usage("the user's data directory is not known: HOME is not set").hint("name a directory with --to")
    })?;
    let mut options = fetch::Options::new(set, env::var(fetch::MIRROR_VARIABLE).ok());
    options.force = force;

    // The bar draws on standard error, and only where that is a terminal.
    let bar = ProgressBar::no_length();
    let style = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    let mut printed = Ok(());
    let mut tell = |event: Event<'_>| match event {
        Event::Started(name, have, total) => {
            bar.set_message(name.to_owned());
            bar.set_length(total.unwrap_or(0));
            bar.set_position(have);
        }
        Event::Received(bytes) => bar.inc(bytes),
        Event::Refused(url, why) => bar.suspend(|| {
            // When standard error is gone, the error at the end says it all.
            let _ = writeln!(io::stderr(), "note: {url}: {why}");
        }),
        Event::Kept(path) => note(&mut printed, &bar, "kept", path),
        Event::Done(path) => note(&mut printed, &bar, "fetched", path),
    };
    let fetched = fetch::fetch(set, &dir, &options, &mut tell);
    bar.finish_and_clear();
    fetched?;
    printed?;
    print(&format!("{name} is in {}: {}", dir.display(), usage(set, &dir)))
}

fn note(printed: &mut Result<()>, bar: &ProgressBar, what: &str, path: &Path) {
    let result = bar.suspend(|| print(&format!("{what} {}", path.display())));
    if printed.is_ok() {
        *printed = result;
    }
}

/// How to train on what was fetched.
fn usage(set: &Published, dir: &Path) -> String {
    let found = find::find(set.name, None).map(|found| found.dir.canonicalize());
    let here = dir.canonicalize();
    if let (Ok(Ok(found)), Ok(here)) = (found, here)
        && found == here
    {
        return format!("use it with --dataset {}", set.name);
    }
    // For a set in a folder of its own, --data-dir names the directory around that folder.
    let around = match dir.parent() {
        _ if set.folder.is_empty() => Some(dir),
        Some(around) if dir.ends_with(set.folder) && around != Path::new("") => Some(around),
        _ => None,
    };
    match around {
        Some(around) => format!("use it with --dataset {} --data-dir {}", set.name, around.display()),
        None => format!("use it with --dataset {}", Path::new(".").join(dir).display()),
    }
}

/// Writes a line to standard output. A reader that closed it early has what it wanted.
fn print(line: &str) -> Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::io("write to", Path::new("standard output"), error))
        }
        _ => Ok(()),
    }
}
