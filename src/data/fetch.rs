//! Downloads: mirrors in order, and a file is checked before it takes its place.
//!
//! A download grows in `NAME.gz.part` beside its place, where an interrupted one is taken up again. When it is complete it
//! is unpacked and its SHA-256 compared; then it is flushed to disk and renamed. So a file under its final name is
//! always whole and right, and a good one is never replaced by a bad one.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    check, find,
    sets::{FILES, FileSpec, Published},
};
use crate::{Error, Kind, Result};

mod http;

/// Held by the process that fetches into a directory, so that two do not write one `.part` file.
const LOCK: &str = ".mnist-swiglu-fetch.lock";

/// The environment variable that names a mirror to ask before all others.
pub const MIRROR_VARIABLE: &str = "MNIST_SWIGLU_MIRROR";

/// How to fetch.
#[derive(Clone, Debug)]
pub struct Options {
    /// Base URLs, asked in order; the name of the `.gz` file is appended.
    pub mirrors: Vec<String>,
    /// Fetch what is there and right, too.
    pub force: bool,
    /// How long a server may take to connect, to answer, and between two pieces of the body.
    pub patience: Duration,
    /// Whether `ALL_PROXY`, `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` are obeyed.
    pub proxy_from_env: bool,
}

impl Options {
    /// The mirrors of `set`, after `extra` (the value of [`MIRROR_VARIABLE`]).
    pub fn new(set: &Published, extra: Option<String>) -> Self {
        let extra = extra.filter(|url| !url.trim().is_empty());
        let known = set.mirrors.iter().map(|url| (*url).to_owned());
        Options {
            mirrors: extra.into_iter().chain(known).collect(),
            force: false,
            patience: Duration::from_secs(20),
            proxy_from_env: true,
        }
    }
}

/// What happens, for whoever shows progress.
#[derive(Debug)]
pub enum Event<'a> {
    /// A file is there and right already.
    Kept(&'a Path),
    /// A server answers: the file's name, bytes here already, and bytes in all where they are known.
    Started(&'a str, u64, Option<u64>),
    /// So many bytes more are here.
    Received(u64),
    /// A mirror did not give the file: its URL, and why.
    Refused(&'a str, &'a str),
    /// A file has taken its place.
    Done(&'a Path),
}

/// Fetches what is missing or wrong of `set` into `dir`, which is created when it is not there.
pub fn fetch(set: &Published, dir: &Path, options: &Options, tell: &mut dyn FnMut(Event<'_>)) -> Result<()> {
    fs::create_dir_all(dir)
        .map_err(|e| Error::io("create the directory", dir, e).hint("choose another one with --to"))?;
    let _lock = Lock::take(dir)?;
    let mut wanted = Vec::new();
    for spec in &FILES {
        match good_copy(set, dir, spec).filter(|_| !options.force) {
            Some(path) => tell(Event::Kept(&path)),
            None => wanted.push(spec),
        }
    }
    let agent = http::agent(options);
    let mut mirrors: Vec<&str> = options.mirrors.iter().map(String::as_str).collect();
    for (index, spec) in wanted.iter().enumerate() {
        let refused = match one_file(&agent, set, spec, dir, &mirrors, tell)? {
            Ok(good) => {
                // A mirror that is down would cost its time-out once a file: ask the one that gave first.
                mirrors.rotate_left(good);
                continue;
            }
            Err(refused) => refused,
        };
        let missing: Vec<String> = wanted.iter().skip(index).map(|spec| format!("{}.gz", spec.name)).collect();
        return Err(Error::new(
            Kind::Io,
            format!(
                "cannot fetch {}.gz of {}: none of {} mirrors gave it",
                spec.name,
                set.name,
                mirrors.len()
            ),
        )
        .because(refused.join("; "))
        .hint(format!(
            "check the network, or the proxy in HTTPS_PROXY; or name a mirror in {MIRROR_VARIABLE}; or put {} into {} by hand",
            missing.join(", "),
            dir.display()
        )));
    }
    Ok(())
}

/// The path of a right copy of `spec` in `dir`, under the name that would be read.
fn good_copy(set: &Published, dir: &Path, spec: &FileSpec) -> Option<PathBuf> {
    let path = find::file(dir, spec)?;
    check::is_published(&path, check::is_packed(&path), spec, set).is_ok().then_some(path)
}

/// Asks the mirrors in turn: the index of the one that gave the file, or what each said. An error of our own disk ends it.
fn one_file(
    agent: &ureq::Agent,
    set: &Published,
    spec: &FileSpec,
    dir: &Path,
    mirrors: &[&str],
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<Result<usize, Vec<String>>> {
    let name = format!("{}.gz", spec.name);
    let path = dir.join(&name);
    let part = dir.join(format!("{name}.part"));
    // Compression never adds more than a fraction of a percent: what is longer is something else.
    let decoded = spec.content.length(set.count(spec));
    let most = decoded + decoded / 100 + 4096;
    let mut refused = Vec::new();
    for (index, mirror) in mirrors.iter().enumerate() {
        let url = format!("{}/{name}", mirror.trim().trim_end_matches('/'));
        // A part that was taken up again may have begun as another compression of the same file: then once more, afresh.
        for _ in 0..2 {
            let resumed = part.metadata().is_ok_and(|metadata| metadata.len() > 0);
            let why = match http::download(agent, &url, &name, &part, most, tell) {
                Ok(()) => match check::is_published(&part, true, spec, set) {
                    Ok(()) => {
                        put_in_place(&part, &path)?;
                        tell(Event::Done(&path));
                        return Ok(Ok(index));
                    }
                    Err(why) => {
                        fs::remove_file(&part).map_err(|e| Error::io("remove", &part, e))?;
                        if resumed {
                            continue;
                        }
                        format!("what it sent is not {name} of {}: {why}", set.name)
                    }
                },
                Err(http::Failure::Disk(error)) => return Err(error),
                Err(http::Failure::Mirror(why)) => why,
            };
            tell(Event::Refused(&url, &why));
            refused.push(format!("{url}: {why}"));
            break;
        }
    }
    Ok(Err(refused))
}

/// Renames a checked download, with everything on disk before its name is.
fn put_in_place(part: &Path, path: &Path) -> Result<()> {
    let flushed = OpenOptions::new().write(true).open(part).and_then(|file| file.sync_all());
    flushed.map_err(|e| Error::io("write to disk", part, e))?;
    fs::rename(part, path).map_err(|e| {
        Error::io("put the download in place as", path, e).hint("remove what stands there, and fetch again")
    })?;
    // The new name is on disk once its directory is. Windows has no such call, and needs none.
    #[cfg(unix)]
    if let Some(dir) = path.parent() {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| Error::io("write to disk", dir, e))?;
    }
    Ok(())
}

/// The lock on a directory; the system frees it when its process ends, however it ends.
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    fn take(dir: &Path) -> Result<Self> {
        let path = dir.join(LOCK);
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(|e| {
                Error::io("write to", dir, e).hint("choose a directory that you can write to with --to")
            })?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                Err(Error::new(Kind::Io, format!("another process is fetching into {}", dir.display()))
                    .hint("wait until it is done, or choose another directory with --to"))
            }
            // Some network file systems know no locks: there it is the rename alone that keeps files whole.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Lock { path, _file: file }),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A lock file that stays does no harm: it is the lock on it that counts.
        let _ = fs::remove_file(&self.path);
    }
}
