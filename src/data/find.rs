//! Where a data set stands.

use std::{
    env,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use super::sets::{self, FILES, FileSpec, Published};
use crate::{Error, Kind, Result};

/// A data set that was found. Its files are not checked yet.
#[derive(Clone, Debug)]
pub struct Found {
    /// `mnist`, `fashion`, or the name of a directory.
    pub name: String,
    /// The directory with at least one of the four files.
    pub dir: PathBuf,
    /// Its sizes and checksums, where they are known.
    pub published: Option<&'static Published>,
}

/// Finds the data set that `--dataset` and `--data-dir` mean on this machine.
pub fn find(dataset: &str, data_dir: Option<&Path>) -> Result<Found> {
    find_among(dataset, data_dir, &places())
}

/// Finds it in `data_dir`, or in the first of `places` that holds any of the four files.
///
/// A `data_dir` that holds none is an error: whoever names a directory does not want the files of another one. A `dataset`
/// that is a directory is taken as it is, and `data_dir` says nothing about it.
pub fn find_among(dataset: &str, data_dir: Option<&Path>, places: &[PathBuf]) -> Result<Found> {
    let Some(set) = sets::published(dataset) else {
        return directory(dataset);
    };
    // An environment variable that is set to nothing means nothing.
    let data_dir = data_dir.filter(|dir| !dir.as_os_str().is_empty());
    let places = match data_dir {
        Some(dir) => &[dir.to_path_buf()],
        None => places,
    };
    let candidates: Vec<PathBuf> = places.iter().map(|place| inside(place, set)).collect();
    if let Some(dir) = candidates.iter().find(|dir| holds_any(dir)) {
        return Ok(Found { name: set.name.to_owned(), dir: dir.clone(), published: Some(set) });
    }
    let looked: Vec<String> = candidates.iter().map(|d| d.display().to_string()).collect();
    let to = match data_dir {
        Some(dir) => format!(" --to {}", inside(dir, set).display()),
        None => String::new(),
    };
    Err(Error::new(
        Kind::Data,
        format!(
            "cannot find {name}: none of its four files ({first}[.gz], ...) is in {dirs}",
            name = set.name,
            first = FILES[0].name,
            dirs = looked.join(", "),
        ),
    )
    .hint(format!(
        "run `mnist-swiglu data fetch {}{to}`, or name the directory that holds the files with --data-dir",
        set.name
    )))
}

/// A data set without a name: a directory.
fn directory(dataset: &str) -> Result<Found> {
    let dir = PathBuf::from(dataset);
    let looks_like_one = dataset.contains(std::path::is_separator) || dir.is_dir();
    if !looks_like_one {
        return Err(Error::usage(format!("no data set is called '{dataset}'"))
            .hint("give mnist, fashion, or a directory with the four IDX files, such as ./mine"));
    }
    if !holds_any(&dir) {
        return Err(Error::new(
            Kind::Data,
            format!("cannot find a data set in {}: it holds none of the four IDX files", dir.display()),
        )
        .hint(format!("it has to hold {}, plain or with .gz", FILES.each_ref().map(|file| file.name).join(", "))));
    }
    let name = match dir.canonicalize().unwrap_or(dir.clone()).file_name() {
        Some(name) => name.to_string_lossy().into_owned(),
        None => dataset.to_owned(),
    };
    Ok(Found { name, dir, published: None })
}

/// Where `set` stands inside a data directory.
fn inside(place: &Path, set: &Published) -> PathBuf {
    if set.folder.is_empty() { place.to_path_buf() } else { place.join(set.folder) }
}

fn holds_any(dir: &Path) -> bool {
    FILES.iter().any(|spec| file(dir, spec).is_some())
}

/// The path under which `spec` stands in `dir`, by any of its names. It may be anything but absent: whatever is there has
/// to be told about rather than passed over.
pub fn file(dir: &Path, spec: &FileSpec) -> Option<PathBuf> {
    spec.names().map(|name| dir.join(name)).into_iter().find(|path| match fs::symlink_metadata(path) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
    })
}

/// The directories that are looked into when none is named, in order.
pub fn places() -> Vec<PathBuf> {
    let beside = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("data")));
    // The tree that this program was built from; on another machine the path is simply not there.
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    let mut places = vec![PathBuf::from("data")];
    places.extend(beside);
    places.push(source);
    places.extend(user_dir());
    places
}

/// The user's data directory for this program, where `data fetch` puts files.
pub fn user_dir() -> Option<PathBuf> {
    user_dir_from(|name| env::var_os(name), env::home_dir())
}

/// By the rules of each system: XDG on Linux and the BSDs, Application Support on macOS, AppData\Local on Windows.
fn user_dir_from(variable: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Option<PathBuf> {
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = home.filter(|path| path.is_absolute());
    let base = if cfg!(windows) {
        absolute("LOCALAPPDATA").or_else(|| Some(home?.join("AppData").join("Local")))
    } else if cfg!(target_os = "macos") {
        Some(home?.join("Library").join("Application Support"))
    } else {
        absolute("XDG_DATA_HOME").or_else(|| Some(home?.join(".local").join("share")))
    };
    Some(base?.join("mnist-swiglu"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_users_directory_follows_xdg() {
        let home = || Some(PathBuf::from("/home/me"));
        let given = |value: &'static str| move |_: &str| Some(OsString::from(value));
        let dir = |path: &str| Some(PathBuf::from(path));
        assert_eq!(user_dir_from(|_| None, home()), dir("/home/me/.local/share/mnist-swiglu"));
        assert_eq!(user_dir_from(given("/x"), home()), dir("/x/mnist-swiglu"));
        // XDG: a path that is not absolute is to be ignored.
        assert_eq!(user_dir_from(given("x"), home()), dir("/home/me/.local/share/mnist-swiglu"));
        assert_eq!(user_dir_from(|_| None, None), None);
    }

    #[test]
    fn places_are_in_the_order_that_the_help_promises() {
        let places = places();
        assert_eq!(places[0], Path::new("data"));
        assert_eq!(places[2], Path::new(env!("CARGO_MANIFEST_DIR")).join("data"));
    }
}
