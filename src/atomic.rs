//! Files that are there whole or not at all: written under a temporary name beside the final one, flushed to the disk,
//! renamed, and the rename flushed too. A kill or a power cut at any moment leaves the old file or the new one.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{Error, Result};

/// What stands between the final name and the numbers that make a temporary name unique.
const MARK: &str = ".tmp-";

/// Replaces `path` with what `fill` writes.
///
/// When `fill` or the disk fails, `path` is as it was and the temporary file is removed.
pub fn write_atomic(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<()> {
    let temporary = temporary_name(path)?;
    let written = write_synced(&temporary, fill)
        .map_err(|source| Error::io("write", path, source))
        .and_then(|()| fs::rename(&temporary, path).map_err(|source| Error::io("put in place", path, source)));
    if let Err(error) = written {
        // The first failure is the one to report; what cannot be removed now is removed by `remove_stale`.
        let _ = fs::remove_file(&temporary);
        return Err(
            error.hint("is the disk full, or the folder read-only? The file that was there before is untouched")
        );
    }
    sync_parent(path)
}

/// Removes temporary files that killed processes left in `dir`; says how many.
///
/// Only for folders with one writer, such as a locked run folder: a living writer's file would go as well.
pub fn remove_stale(dir: &Path) -> Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(dir).map_err(|source| Error::io("list", dir, source))? {
        let path = entry.map_err(|source| Error::io("list", dir, source))?.path();
        let stale = path.file_name().and_then(|name| name.to_str()).is_some_and(is_temporary);
        if stale && path.is_file() {
            fs::remove_file(&path).map_err(|source| Error::io("remove", &path, source))?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Flushes the entry of `path` in its folder to the disk.
pub fn sync_parent(path: &Path) -> Result<()> {
    // Elsewhere a folder cannot be opened as a file, and a rename is as durable as the system makes it.
    #[cfg(unix)]
    {
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(parent)
            .and_then(|folder| folder.sync_all())
            .map_err(|source| Error::io("flush to disk", parent, source))?;
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

fn write_synced(temporary: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
    let mut writer = BufWriter::new(File::create_new(temporary)?);
    fill(&mut writer)?;
    writer.flush()?;
    writer.get_ref().sync_all()
}

/// `path` with a suffix that no other writer in this process or another living one uses.
fn temporary_name(path: &Path) -> Result<PathBuf> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let mut name = path
        .file_name()
        .ok_or_else(|| Error::usage(format!("{} is not the name of a file", path.display())))?
        .to_os_string();
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    // Process numbers are used again, in a container above all: the clock keeps a dead one's leftovers apart.
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    name.push(format!("{MARK}{}-{nanos}-{count}", std::process::id()));
    Ok(path.with_file_name(name))
}

/// Whether `name` is one that [`temporary_name`] makes.
fn is_temporary(name: &str) -> bool {
    name.rsplit_once(MARK).is_some_and(|(stem, suffix)| {
        !stem.is_empty()
            && suffix.split('-').count() == 3
            && suffix.split('-').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;

    #[test]
    fn a_file_is_replaced_whole_and_no_temporary_file_stays() {
        let folder = Folder::new("atomic-whole");
        let path = folder.join("a.txt");
        for text in ["first", "second, longer"] {
            write_atomic(&path, |file| file.write_all(text.as_bytes())).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(folder.names(), ["a.txt"]);
    }

    #[test]
    fn a_write_that_fails_half_way_leaves_the_old_file_and_no_temporary_one() {
        let folder = Folder::new("atomic-half");
        let path = folder.join("a.txt");
        write_atomic(&path, |file| file.write_all(b"old")).unwrap();
        let error = write_atomic(&path, |file| {
            file.write_all(b"ne")?;
            Err(io::Error::other("disk full"))
        })
        .unwrap_err();
        assert!(error.to_string().contains("a.txt"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(folder.names(), ["a.txt"]);
    }

    #[test]
    fn stale_temporary_files_go_and_everything_else_stays() {
        let folder = Folder::new("atomic-stale");
        for name in ["x.safetensors.tmp-12-99-0", "notes.tmp-draft", "a.tmp-1-2-", "x.safetensors"] {
            fs::write(folder.join(name), "x").unwrap();
        }
        assert_eq!(remove_stale(folder.path()).unwrap(), 1);
        assert_eq!(folder.names(), ["a.tmp-1-2-", "notes.tmp-draft", "x.safetensors"]);
    }
}
