//! Checked files, read through the `mnist` crate.
//!
//! The crate reads unpacked files from a directory, panics on whatever it does not like, trusts a header's count without
//! looking at the length of the body, and knows 60,000 and 10,000 images alone. So the files are read and checked first
//! ([`super::check`]); the checked bytes, not the user's files, are laid in a private directory for the crate; and what
//! it returns is compared with them. What can change under it is then nobody's but ours, and what it returns is right.
//!
//! There is no cache of unpacked files. On one core of a server, unpacking takes 0.12 s and everything else here 0.19 s,
//! most of it inside the crate; a cache would have to be checksummed at every start, so that it saved the 0.12 s alone, for
//! one more thing on disk that can be damaged, half-written, raced for or filled up.

use std::{
    fs, io, panic,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use mnist::MnistBuilder;

use super::{
    Dataset, Split, check,
    find::{self, Found},
    idx::Idx,
    sets::{FILES, MNIST},
};
use crate::{Error, Kind, Result, cli::DataArgs};

/// Finds, checks and reads the data set that the command line means.
pub fn load(args: &DataArgs) -> Result<Dataset> {
    load_from(&args.dataset, args.data_dir.as_deref())
}

/// Finds, checks and reads `dataset`: `mnist`, `fashion` or a directory. `data_dir` is where to look, and nowhere else.
pub fn load_from(dataset: &str, data_dir: Option<&Path>) -> Result<Dataset> {
    read(find::find(dataset, data_dir)?)
}

/// A data set that a thread of its own reads, while other things are made ready.
#[derive(Debug)]
pub struct Loading {
    thread: Option<thread::JoinHandle<Result<Dataset>>>,
}

impl Loading {
    /// Starts to find, check and read the data set that the command line means.
    pub fn start(args: &DataArgs) -> Loading {
        let args = args.clone();
        Loading { thread: Some(thread::spawn(move || load(&args))) }
    }

    /// The data set, when it is there.
    ///
    /// # Errors
    /// As [`load`].
    pub fn finish(mut self) -> Result<Dataset> {
        match self.thread.take().map(thread::JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => panic::resume_unwind(panic),
            None => Err(Error::new(Kind::Data, "the data set was taken already")),
        }
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        // The process may be about to end, on an error elsewhere: the thread must not leave its temporary files behind.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Checks and reads a data set that was found.
fn read(found: Found) -> Result<Dataset> {
    let mut checks = check::check(&found);
    if let Some(error) = check::first_problem(&mut checks) {
        return Err(error);
    }
    let [Some(a), Some(b), Some(c), Some(d)] = checks.map(|check| check.idx) else {
        return Err(Error::new(Kind::Data, format!("cannot read {}: a file was not read", found.dir.display())));
    };
    let (train, test) = arrays([a, b, c, d], &found.dir, &std::env::temp_dir())?;
    Ok(Dataset { name: found.name, dir: found.dir, train, test })
}

/// The arrays of four checked files: (train, test). `temporary` is where the crate's copy of them can stand.
fn arrays(files: [Idx; 4], dir: &Path, temporary: &Path) -> Result<(Split, Split)> {
    let [train, _, test, _] = &files;
    // The crate refuses other sizes; and where no file can be written, it has nothing to read. What it would have to
    // return is known to the byte either way.
    let sizes = (train.count, test.count);
    if sizes == (MNIST.train, MNIST.test)
        && let Ok(scratch) = Scratch::with(&files, temporary)
        && let Some(path) = scratch.path.to_str()
    {
        return through_the_crate(path, &files, dir);
    }
    let [train_images, train_labels, test_images, test_labels] = files.map(|file| file.body().to_vec());
    Ok((Split { images: train_images, labels: train_labels }, Split { images: test_images, labels: test_labels }))
}

fn through_the_crate(scratch: &str, files: &[Idx; 4], dir: &Path) -> Result<(Split, Split)> {
    let failed = |what: &str| {
        Error::new(Kind::Data, format!("cannot read the files of {} back from {scratch}: {what}", dir.display()))
            .hint("is the disk full or damaged? TMPDIR names another place for temporary files")
    };
    // It panics when a file cannot be opened or read: possible, if the disk fails or a cleaner takes the directory away.
    let read = panic::catch_unwind(|| {
        MnistBuilder::new()
            .base_path(scratch)
            .training_images_filename(FILES[0].name)
            .training_labels_filename(FILES[1].name)
            .test_images_filename(FILES[2].name)
            .test_labels_filename(FILES[3].name)
            .label_format_digit()
            // Its own validation split is not used: it would shift images against the test set when lengths do not add up.
            .training_set_length(MNIST.train)
            .validation_set_length(0)
            .test_set_length(MNIST.test)
            .finalize()
    })
    .map_err(|_| failed("the mnist crate gave up"))?;
    let arrays = [&read.trn_img, &read.trn_lbl, &read.tst_img, &read.tst_lbl];
    if arrays.iter().zip(files).any(|(array, file)| *array != file.body()) {
        return Err(failed("they are not the bytes that were checked"));
    }
    Ok((Split { images: read.trn_img, labels: read.trn_lbl }, Split { images: read.tst_img, labels: read.tst_lbl }))
}

/// A directory of our own with the four unpacked files. It goes when this does.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn with(files: &[Idx; 4], temporary: &Path) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("mnist-swiglu-{}-{number}", std::process::id());
        // A leftover of a killed process with our number may be there, or what somebody laid there for us: never use it.
        let scratch = (0..16)
            .map(|attempt| temporary.join(format!("{name}-{attempt}")))
            .find_map(|path| match private_directory(&path) {
                Ok(()) => Some(Ok(Scratch { path })),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
                Err(error) => Some(Err(error)),
            })
            .unwrap_or_else(|| Err(io::ErrorKind::AlreadyExists.into()))?;
        for (spec, file) in FILES.iter().zip(files) {
            fs::write(scratch.path.join(spec.name), &file.bytes)?;
        }
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing depends on it: what is left over is in the directory for temporary files.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Makes a directory that nobody else can enter; fails when anything stands there.
fn private_directory(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_directory_holds_the_four_files_and_goes_with_its_owner() {
        let file = |content, body: &[u8]| Idx {
            content,
            count: 1,
            bytes: crate::data::idx::write(content, body).expect("whole items"),
        };
        let files = FILES.each_ref().map(|spec| file(spec.content, &vec![1; spec.content.item()]));
        let scratch = Scratch::with(&files, &std::env::temp_dir()).expect("a directory for temporary files");
        let path = scratch.path.clone();
        let label = fs::read(path.join("t10k-labels-idx1-ubyte")).expect("a file");
        assert_eq!(label, [0, 0, 8, 1, 0, 0, 0, 1, 1]);
        drop(scratch);
        assert!(!path.exists());
    }

    #[test]
    fn a_panic_of_the_crate_is_an_error_that_names_the_place() {
        let files = FILES.each_ref().map(|spec| Idx { content: spec.content, count: 0, bytes: Vec::new() });
        let error = through_the_crate("/nowhere/at/all", &files, Path::new("mine")).expect_err("nothing to read");
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("TMPDIR")));
    }

    #[test]
    fn where_no_temporary_file_can_be_written_the_arrays_are_the_same() {
        let files = || {
            FILES.each_ref().map(|spec| {
                let count = MNIST.count(spec);
                let body: Vec<u8> = (0..count as usize * spec.content.item()).map(|i| (i / 3 % 10) as u8).collect();
                Idx {
                    content: spec.content,
                    count,
                    bytes: crate::data::idx::write(spec.content, &body).expect("whole items"),
                }
            })
        };
        let read = |temporary: &Path| arrays(files(), Path::new("mine"), temporary).expect("arrays");
        let through = read(&std::env::temp_dir());
        assert_eq!(through.0.len(), 60_000);
        assert!(through == read(Path::new("/nowhere/at/all")));
    }
}
