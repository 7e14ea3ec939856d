//! Whether the four files of a data set are right: format, lengths, counts, labels, checksums.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    thread,
};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};

use super::{
    find::{self, Found},
    idx::{self, Fault, Idx},
    sets::{FILES, FileSpec, Published},
};
use crate::{Error, Kind, Result};

/// What is known about one of the four files after a look at it.
#[derive(Debug)]
pub struct FileCheck {
    /// Which of the four.
    pub spec: &'static FileSpec,
    /// Where it stands; none when it is missing.
    pub path: Option<PathBuf>,
    /// SHA-256 of its decompressed bytes, when it is an IDX file.
    pub sha256: Option<String>,
    /// Its bytes, when it is an IDX file.
    pub idx: Option<Idx>,
    /// What is wrong with it. None: it is right.
    pub problem: Option<Error>,
}

/// Looks at all four files, and leaves none out because another one is wrong.
pub fn check(found: &Found) -> [FileCheck; 4] {
    // Unpacking is most of a start's time, so each file has a thread. Not one of rayon's: its pool is sized later.
    let mut checks = thread::scope(|scope| {
        FILES
            .each_ref()
            .map(|spec| scope.spawn(move || check_one(found, spec)))
            .map(|handle| handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let (train, test) = checks.split_at_mut(2);
    for pair in [train, test] {
        if let [images, labels] = pair {
            compare_counts(found, images, labels);
        }
    }
    checks
}

/// The error for a data set in which `checks` found something wrong, if they did. It names the first wrong file.
pub fn first_problem(checks: &mut [FileCheck]) -> Option<Error> {
    let problems: Vec<Error> = checks.iter_mut().filter_map(|c| c.problem.take()).collect();
    let others = problems.len().saturating_sub(1);
    let first = problems.into_iter().next()?;
    if others == 0 {
        return Some(first);
    }
    let hint = first.hint_text().unwrap_or_default().to_owned();
    let see = format!("{hint}; {others} more of the four files are wrong, `mnist-swiglu data verify` tells which");
    Some(first.hint(see))
}

fn check_one(found: &Found, spec: &'static FileSpec) -> FileCheck {
    let mut check = FileCheck { spec, path: find::file(&found.dir, spec), sha256: None, idx: None, problem: None };
    let Some(path) = &check.path else {
        let missing = format!(
            "cannot find {}, with or without .gz, in {}, where other files of {} are",
            spec.name,
            found.dir.display(),
            found.name
        );
        check.problem = Some(Error::new(Kind::Data, missing).hint(remedy(found, "put it there")));
        return check;
    };
    match read(path, is_packed(path), spec, found.published) {
        Ok((idx, sha256)) => {
            let wanted = found.published.and_then(|set| set.sha256_of(spec));
            if let Some(wanted) = wanted.filter(|wanted| *wanted != sha256) {
                check.problem = Some(problem(
                    found,
                    path,
                    format!("its bytes are not those of {}: their SHA-256 is {sha256} instead of {wanted}", found.name),
                ));
            }
            check.sha256 = Some(sha256);
            check.idx = Some(idx);
        }
        Err(fault) => check.problem = Some(problem(found, path, fault.to_string())),
    }
    check
}

/// Whether a file's name says that it is gzip data.
pub fn is_packed(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gz")
}

/// Whether the file at `path`, gzip data when it is `packed`, is `spec` of `set`, byte for byte; or why not.
pub fn is_published(path: &Path, packed: bool, spec: &FileSpec, set: &Published) -> Result<(), String> {
    let (_, sha256) = read(path, packed, spec, Some(set)).map_err(|fault| fault.to_string())?;
    if Some(sha256.as_str()) == set.sha256_of(spec) {
        Ok(())
    } else {
        Err(format!("its SHA-256 (unpacked) is {sha256}"))
    }
}

/// Reads the file at `path`, through gzip when it is `packed`, with the SHA-256 of its unpacked bytes.
fn read(path: &Path, packed: bool, spec: &FileSpec, set: Option<&Published>) -> Result<(Idx, String), Fault> {
    // Opening a pipe would wait for a writer, and a directory opens but does not read: ask first.
    let metadata = fs::metadata(path).map_err(Fault::Read)?;
    if metadata.is_dir() {
        return Err(Fault::NotAFile("a directory"));
    }
    if !metadata.is_file() {
        return Err(Fault::NotAFile("a pipe or a device"));
    }
    if metadata.len() == 0 {
        return Err(Fault::Empty);
    }
    let count = set.map(|set| set.count(spec));
    let mut file = BufReader::with_capacity(1 << 16, File::open(path).map_err(Fault::Read)?);
    let start = file.fill_buf().map_err(Fault::Read)?;
    if packed && !start.starts_with(&[0x1f, 0x8b]) {
        return Err(Fault::NotGzip);
    }
    let idx = if packed {
        // Some writers split a file over several gzip members: they are one file, as gzip itself takes them.
        idx::read(MultiGzDecoder::new(file), spec.content, count)?
    } else {
        idx::read(file, spec.content, count)?
    };
    let sha256 = hex(&Sha256::digest(&idx.bytes));
    Ok((idx, sha256))
}

/// Two right files can still not belong together.
fn compare_counts(found: &Found, images: &FileCheck, labels: &mut FileCheck) {
    if let (Some(i), Some(l), Some(path), None) = (&images.idx, &labels.idx, &labels.path, &labels.problem)
        && i.count != l.count
    {
        let text = format!("it holds {} labels for {} images", l.count, i.count);
        labels.problem = Some(problem(found, path, text));
    }
}

fn problem(found: &Found, path: &Path, what: String) -> Error {
    Error::new(Kind::Data, format!("cannot use {}: {what}", path.display()))
        .hint(remedy(found, "put a good copy in its place"))
}

fn remedy(found: &Found, by_hand: &str) -> String {
    match found.published {
        Some(set) => format!("run `mnist-swiglu data fetch {} --to {}`, or {by_hand}", set.name, found.dir.display()),
        None => format!("{by_hand}; `mnist-swiglu data verify` checks all four files"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
