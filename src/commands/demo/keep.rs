//! Chapter 7: the folder with the records and the report. It is made under another name and put in place whole, so that what
//! was interrupted leaves nothing half-written.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::super::bench::FOLDER;
use crate::{
    Error, Result, atomic, clock,
    measure::record::{self, Origin, Record, Writer},
    report::folder,
};

/// The file of the records.
const FILE: &str = "demo.jsonl";

/// The folder to be made: `out`, which must be absent or empty, or a new one named for the time.
///
/// # Errors
/// When `out` holds something.
pub fn place(out: Option<&Path>) -> Result<PathBuf> {
    let Some(out) = out else {
        return Ok(Path::new(FOLDER).join(format!("demo-{}", clock::compact(SystemTime::now()))));
    };
    match fs::read_dir(out) {
        Ok(mut entries) => match entries.next() {
            None => Ok(out.to_path_buf()),
            Some(_) => Err(Error::usage(format!("--out {} is not empty", out.display()))
                .hint("give the name of a new or empty folder: nothing is ever overwritten")),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(out.to_path_buf()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(Error::usage(format!("--out {} is a file", out.display())).hint("give the name of a folder"))
        }
        Err(error) => Err(Error::io("look into", out, error)),
    }
}

/// Writes records and report into `folder`, all or nothing.
///
/// # Errors
/// When the folder cannot be written.
pub fn write(place: &Path, origin: Origin, records: Vec<Record>) -> Result<()> {
    let hint = "give a folder that you may write to with --out";
    let name =
        place.file_name().ok_or_else(|| Error::usage(format!("--out {} is no name", place.display())).hint(hint))?;
    let parent = place.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|e| Error::io("make the folder", parent, e).hint(hint))?;
    let mut unfinished = name.to_os_string();
    unfinished.push(format!(".tmp-{}", std::process::id()));
    let unfinished = Unfinished(parent.join(unfinished));
    let mut writer = Writer::append(&unfinished.0, FILE, origin)?;
    for record in records {
        writer.write(record)?;
    }
    folder::write(&record::read(&[unfinished.0.join(FILE)])?, &unfinished.0)?;
    // An empty folder gives way; one that something was put into meanwhile does not.
    match fs::remove_dir(place) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io("replace", place, error).hint(hint));
        }
        _ => {}
    }
    fs::rename(&unfinished.0, place).map_err(|e| Error::io("put in place", place, e).hint(hint))?;
    atomic::sync_parent(place)
}

/// A folder that is removed unless it was renamed.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // It is not there after it was put in place.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;

    #[test]
    fn a_folder_that_holds_something_is_refused_and_one_that_fails_leaves_nothing() {
        let folder = Folder::new("demo-keep");
        assert_eq!(place(Some(&folder.join("new"))).unwrap(), folder.join("new"));
        fs::write(folder.join("file"), "mine").unwrap();
        for path in [folder.path().to_path_buf(), folder.join("file")] {
            assert!(place(Some(&path)).unwrap_err().hint_text().is_some(), "{}", path.display());
        }
        let origin = Origin {
            model: "a processor".into(),
            system: "linux".into(),
            threads: 1,
            driver: None,
            version: "0".into(),
            commit: "0".into(),
            time: "now".into(),
        };
        // Without records there is no report, and no folder.
        assert!(write(&folder.join("new"), origin, Vec::new()).is_err());
        assert_eq!(folder.names(), ["file"]);
    }
}
