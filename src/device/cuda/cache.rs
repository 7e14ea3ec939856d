//! Compiled kernels kept on disk, so that only the first start compiles.
//!
//! An entry's name is a hash of all that the machine code depends on: the kernel's text and its headers, the options, NVRTC's
//! version. Inside stands the same as text and a checksum, so that a damaged entry is noticed and made again. Entries are put
//! in place whole: processes that compile the same at once write the same twice, and the last one stays. The tuner keeps its
//! choices in the same way, in a folder beside ([`super::tune`]).

use std::{
    env,
    ffi::OsString,
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::Mutex,
};

use sha2::{Digest, Sha256};

use super::{
    compile::Configuration,
    nvrtc::Nvrtc,
    sources::{fingerprint, hex},
};
use crate::{Error, Kind as ErrorKind, Result, atomic};

/// What a cache keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Compiled kernels.
    Cubins,
    /// Tiles that were found to be the fastest.
    Tiles,
}

impl Kind {
    /// The first line of an entry; another layout has another number.
    fn magic(self) -> &'static str {
        match self {
            Kind::Cubins => "mnist-swiglu cubin 1",
            Kind::Tiles => "mnist-swiglu tile 1",
        }
    }

    /// The folder in the user's cache.
    fn folder(self) -> &'static str {
        match self {
            Kind::Cubins => "cubins",
            Kind::Tiles => "tiles",
        }
    }

    /// What it means that nothing can be kept in `dir`.
    fn complaint(self, dir: &Path) -> String {
        match self {
            Kind::Cubins => {
                format!("compiled kernels cannot be kept in {}: every start compiles them", dir.display())
            }
            Kind::Tiles => format!("the fastest tiles cannot be kept in {}: every start tunes again", dir.display()),
        }
    }
}

/// Compiled kernels (or tiles) on disk. Without a folder that can be used it compiles each time, and says so once.
#[derive(Debug)]
pub struct Cache {
    kind: Kind,
    dir: Option<PathBuf>,
    trouble: Mutex<Trouble>,
}

/// Why nothing is kept.
#[derive(Debug, Default)]
enum Trouble {
    #[default]
    None,
    Untold(Error),
    Told,
}

/// What is in a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Files.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What there is of an entry.
#[derive(Debug, PartialEq)]
pub(super) enum Kept {
    /// Its file and its body.
    Whole(PathBuf, Vec<u8>),
    /// Nothing.
    Nothing,
    /// A file that cannot be read, is not whole, or is of something else.
    Damaged(PathBuf),
}

impl Cache {
    /// The cache of this user.
    pub fn of_user(kind: Kind) -> Cache {
        let dir = user_dir(|name| env::var_os(name), env::home_dir()).map(|dir| dir.join(kind.folder()));
        let cache = Cache { kind, dir, trouble: Mutex::default() };
        if cache.dir.is_none() {
            cache.complain(Error::new(ErrorKind::Io, "the user's cache directory is not known").hint("set HOME"));
        }
        cache
    }

    /// A cache in `dir`, which is made when something is first kept in it.
    pub fn at(kind: Kind, dir: &Path) -> Cache {
        Cache { kind, dir: Some(dir.to_path_buf()), trouble: Mutex::default() }
    }

    /// Where it is.
    pub fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// What is in it; nothing when it is not there yet.
    ///
    /// # Errors
    /// When the folder is there and cannot be read.
    pub fn size(&self) -> Result<Size> {
        let Some(dir) = &self.dir else { return Ok(Size::default()) };
        let failed = |cause| Error::io("list", dir, cause);
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Size::default()),
            Err(error) => return Err(failed(error)),
        };
        let mut size = Size::default();
        for entry in entries {
            // Another process may remove a file between the listing and the look at it.
            if let Ok(data) = entry.map_err(failed)?.metadata()
                && data.is_file()
            {
                size.entries += 1;
                size.bytes += data.len();
            }
        }
        Ok(size)
    }

    /// Why compiled kernels are not kept, the first time that it is asked after it happened.
    pub fn take_warning(&self) -> Option<Error> {
        let mut trouble = self.trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match std::mem::replace(&mut *trouble, Trouble::Told) {
            Trouble::Untold(error) => Some(error),
            Trouble::None => {
                *trouble = Trouble::None;
                None
            }
            Trouble::Told => None,
        }
    }

    /// The machine code of a configuration: kept, or compiled now and kept.
    ///
    /// # Errors
    /// When it cannot be compiled. That it cannot be kept is no error: see [`Cache::take_warning`].
    pub fn cubin(&self, nvrtc: &Nvrtc, configuration: &Configuration) -> Result<Vec<u8>> {
        Ok(self.cubin_and_whether_fresh(nvrtc, configuration)?.0)
    }

    /// As [`Cache::cubin`], and whether it was compiled now.
    ///
    /// # Errors
    /// As [`Cache::cubin`].
    pub fn cubin_and_whether_fresh(&self, nvrtc: &Nvrtc, configuration: &Configuration) -> Result<(Vec<u8>, bool)> {
        let key = key(configuration, nvrtc.version());
        let mut fresh = false;
        let cubin = self.get_or(configuration, &key, || {
            fresh = true;
            Ok(configuration.compile(nvrtc)?.cubin)
        })?;
        Ok((cubin, fresh))
    }

    fn get_or(
        &self,
        configuration: &Configuration,
        key: &str,
        compile: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<Vec<u8>> {
        let name = name(configuration, key);
        // Not there, not to be read, or damaged: all the same, it is compiled.
        if let Kept::Whole(_, cubin) = self.read(&name, key) {
            return Ok(cubin);
        }
        let cubin = compile()?;
        self.keep(&name, key, &cubin);
        Ok(cubin)
    }

    /// What is kept in the file `name` under `key`.
    pub(super) fn read(&self, name: &str, key: &str) -> Kept {
        let Some(path) = self.dir.as_ref().map(|dir| dir.join(name)) else { return Kept::Nothing };
        match fs::read(&path) {
            Ok(entry) => match unpack(self.kind.magic(), entry, key) {
                Some(body) => Kept::Whole(path, body),
                None => Kept::Damaged(path),
            },
            Err(_) if path.exists() => Kept::Damaged(path),
            Err(_) => Kept::Nothing,
        }
    }

    /// Keeps `body` in the file `name` under `key`. That it cannot is no error: see [`Cache::take_warning`].
    pub(super) fn keep(&self, name: &str, key: &str, body: &[u8]) {
        let Some(dir) = &self.dir else { return };
        let entry = pack(self.kind.magic(), body, key);
        let kept = fs::create_dir_all(dir)
            .map_err(|cause| Error::io("make the folder", dir, cause))
            .and_then(|()| atomic::write_atomic(&dir.join(name), |file| file.write_all(&entry)));
        if let Err(cause) = kept {
            let hint = "make the folder writable, or free space there";
            self.complain(Error::new(ErrorKind::Io, self.kind.complaint(dir)).hint(hint).because(cause));
        }
    }

    /// Removes the file `name`, where there is one.
    pub(super) fn remove(&self, name: &str) {
        if let Some(dir) = &self.dir {
            // What cannot be removed could not be written either, and that was told.
            let _ = fs::remove_file(dir.join(name));
        }
    }

    fn complain(&self, error: Error) {
        let mut trouble = self.trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if matches!(*trouble, Trouble::None) {
            *trouble = Trouble::Untold(error);
        }
    }
}

/// All that the machine code depends on, in one line.
fn key(configuration: &Configuration, (major, minor): (i32, i32)) -> String {
    let sources = fingerprint(configuration.file).unwrap_or_default();
    let options = configuration.options().join(" ");
    format!("{} {sources} nvrtc-{major}.{minor} {options}", configuration.file)
}

/// `swiglu_fused_forward-sm_90-0123456789abcdef0123456789abcdef.cubin`.
fn name(configuration: &Configuration, key: &str) -> String {
    let stem = configuration.file.trim_end_matches(".cu");
    let hash = hex(&Sha256::digest(key));
    format!("{stem}-{}-{}.cubin", configuration.arch, &hash[..32])
}

/// Magic, checksum of all that follows it, key, each on a line; then the body.
fn pack(magic: &str, body: &[u8], key: &str) -> Vec<u8> {
    let mut entry = format!("{magic}\n{}\n{key}\n", checksum(body, key)).into_bytes();
    entry.extend_from_slice(body);
    entry
}

/// The body of an entry, if it is whole and the one that was asked for.
fn unpack(magic: &str, entry: Vec<u8>, key: &str) -> Option<Vec<u8>> {
    let mut lines = entry.splitn(4, |&byte| byte == b'\n');
    let (first, sum, stored, body) = (lines.next()?, lines.next()?, lines.next()?, lines.next()?);
    let whole = first == magic.as_bytes() && stored == key.as_bytes() && sum == checksum(body, key).as_bytes();
    whole.then(|| body.to_vec())
}

fn checksum(body: &[u8], key: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(key);
    hash.update("\n");
    hash.update(body);
    hex(&hash.finalize())
}

/// By the rules of each system: XDG on Linux and the BSDs, Caches on macOS, AppData\Local on Windows.
fn user_dir(variable: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Option<PathBuf> {
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = home.filter(|path| path.is_absolute());
    let base = if cfg!(windows) {
        absolute("LOCALAPPDATA").or_else(|| Some(home?.join("AppData").join("Local")))
    } else if cfg!(target_os = "macos") {
        Some(home?.join("Library").join("Caches"))
    } else {
        absolute("XDG_CACHE_HOME").or_else(|| Some(home?.join(".cache")))
    };
    Some(base?.join("mnist-swiglu"))
}

#[cfg(test)]
mod tests;
