//! The data: found where the help says, refused with a useful word when anything is wrong, read right.

#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use flate2::{Compression, write::GzEncoder};
use mnist_swiglu::{
    Error, Kind,
    data::{
        self, Dataset,
        find::find_among,
        idx::{self, Content},
    },
};

const FILES: [&str; 4] =
    ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"];

/// An empty directory of this test's own.
fn dir(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("data").join(name);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn unpack(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut reader = flate2::read::GzDecoder::new(fs::File::open(path).unwrap());
    std::io::Read::read_to_end(&mut reader, &mut bytes).unwrap();
    bytes
}

/// Four right files: 3 training images and 2 test images.
fn small() -> [Vec<u8>; 4] {
    let images = |count: u8| {
        let body: Vec<u8> = (0..count).flat_map(|i| [i + 1; 784]).collect();
        idx::write(Content::Images, &body).unwrap()
    };
    let labels = |labels: &[u8]| idx::write(Content::Labels, labels).unwrap();
    [images(3), labels(&[5, 0, 4]), images(2), labels(&[7, 2])]
}

fn small_in(name: &str) -> PathBuf {
    let dir = dir(name);
    for (file, bytes) in FILES.iter().zip(small()) {
        fs::write(dir.join(format!("{file}.gz")), gzip(&bytes)).unwrap();
    }
    dir
}

fn load(dir: &Path) -> Result<Dataset, Error> {
    data::load_from(dir.to_str().unwrap(), None)
}

fn mnist_in(name: &str) -> PathBuf {
    let dir = dir(name);
    for file in FILES {
        let file = format!("{file}.gz");
        fs::copy(shipped().join(&file), dir.join(&file)).unwrap();
    }
    dir
}

fn program(arguments: &[&str], in_dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mnist-swiglu"))
        .args(arguments)
        .current_dir(in_dir)
        .env_remove("MNIST_SWIGLU_DATA")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn the_shipped_files_are_mnist() {
    let data = data::load_from("mnist", Some(&shipped())).unwrap();
    assert_eq!((data.name.as_str(), data.dir), ("mnist", shipped()));
    assert_eq!((data.train.len(), data.test.len()), (60_000, 10_000));
    assert_eq!(data.train.images.len(), 47_040_000);
    assert_eq!(data.train.labels[..8], [5, 0, 4, 1, 9, 2, 1, 3]);
    assert_eq!(data.test.labels[..8], [7, 2, 1, 0, 4, 1, 4, 9]);
    let ink = |split: &data::Split| split.images.iter().map(|&p| u64::from(p)).sum::<u64>();
    // 0.1307 * 255 * 47,040,000, to the byte.
    assert_eq!(ink(&data.train), 1_567_298_545);
    let mean = ink(&data.train) as f64 / 255.0 / 47_040_000.0;
    assert!((mean - f64::from(data::MEAN)).abs() < 5e-5, "{mean}");
}

#[test]
fn a_directory_of_any_size_is_read_under_any_of_the_names() {
    type Spelling = fn(&str) -> (String, bool);
    let spellings: [Spelling; 4] = [
        |name| (format!("{name}.gz"), true),
        |name| (name.to_owned(), false),
        |name| (name.replace("-idx", ".idx"), false),
        |name| (name.replace("-idx", ".idx") + ".gz", true),
    ];
    for (number, spelling) in spellings.iter().enumerate() {
        let dir = dir(&format!("names-{number}"));
        for (file, bytes) in FILES.iter().zip(small()) {
            let (name, packed) = spelling(file);
            fs::write(dir.join(name), if packed { gzip(&bytes) } else { bytes }).unwrap();
        }
        let data = load(&dir).unwrap();
        assert_eq!(data.train.labels, [5, 0, 4]);
        assert_eq!(data.test.labels, [7, 2]);
        assert_eq!(data.train.image(2), Some(&[3; 784][..]));
        assert_eq!(data.test.image(1), Some(&[2; 784][..]));
        assert_eq!(data.name, format!("names-{number}"));
    }
}

#[test]
fn a_file_in_several_gzip_members_is_one_file() {
    let dir = small_in("members");
    let [images, ..] = small();
    let (a, b) = images.split_at(500);
    fs::write(dir.join("train-images-idx3-ubyte.gz"), [gzip(a), gzip(b)].concat()).unwrap();
    assert_eq!(load(&dir).unwrap().train.len(), 3);
}

/// What is done to a file; its right bytes, unpacked, are given.
type Damage = fn(&Path, &[u8]);

#[test]
fn every_damage_is_told_with_the_file_the_fault_and_a_remedy() {
    fn packed(path: &Path, bytes: &[u8]) {
        fs::write(path, gzip(bytes)).unwrap();
    }
    fn header(bytes: &[u8], at: usize, value: u32) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        bytes
    }
    fn unpacked(path: &Path, bytes: &[u8]) {
        fs::remove_file(path).unwrap();
        fs::write(path.with_extension(""), bytes).unwrap();
    }
    let (images, labels) = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte");
    let table: &[(&str, &str, Damage, &str)] = &[
        (
            "truncated gz",
            images,
            |p, _| {
                let bytes = fs::read(p).unwrap();
                fs::write(p, &bytes[..bytes.len() / 2]).unwrap();
            },
            "truncated",
        ),
        (
            "gz without its checksum",
            images,
            |p, _| {
                let bytes = fs::read(p).unwrap();
                fs::write(p, &bytes[..bytes.len() - 6]).unwrap();
            },
            "truncated",
        ),
        ("truncated body", images, |p, b| packed(p, &b[..1000]), "984 bytes of data where the header announces 1568"),
        ("truncated header", labels, |p, b| packed(p, &b[..6]), "6 bytes are no IDX header"),
        ("truncated plain file", images, |p, b| unpacked(p, &b[..1000]), "984 bytes of data"),
        ("trailing bytes", labels, |p, b| packed(p, &[b, &[1]].concat()), "too long"),
        (
            "a few bytes after the gzip data",
            labels,
            |p, b| fs::write(p, [&gzip(b)[..], b"junk"].concat()).unwrap(),
            "stray bytes",
        ),
        (
            "many bytes after the gzip data",
            labels,
            |p, b| fs::write(p, [&gzip(b)[..], &[b'?'; 100]].concat()).unwrap(),
            "unpacked: invalid gzip header",
        ),
        ("a gzip bomb", images, |p, b| packed(p, &[b, &vec![0; 50_000_000]].concat()), "too long"),
        ("an absurd count", images, |p, b| packed(p, &header(b, 4, u32::MAX)), "announces 4294967295 images"),
        ("a count of none", labels, |p, b| packed(p, &header(b, 4, 0)), "holds no labels"),
        ("a count of more", images, |p, b| packed(p, &header(b, 4, 900_000)), "truncated: 1568 bytes"),
        ("labels for images", images, |p, _| packed(p, &small()[3]), "holds labels where images should be"),
        ("images for labels", labels, |p, _| packed(p, &small()[2]), "holds images where labels should be"),
        ("the other labels", labels, |p, _| packed(p, &small()[1]), "3 labels for 2 images"),
        (
            "a flipped bit",
            images,
            |p, b| {
                // Stored rather than packed, so that the bit is one of a pixel and the CRC alone can tell.
                let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
                encoder.write_all(b).unwrap();
                let mut bytes = encoder.finish().unwrap();
                bytes[1000] ^= 4;
                fs::write(p, bytes).unwrap();
            },
            "checksum",
        ),
        ("a wrong magic number", images, |p, b| packed(p, &header(b, 0, 0x0d03)), "begins with 0x00000d03"),
        ("another image size", images, |p, b| packed(p, &header(b, 8, 32)), "32 x 28"),
        ("a label out of range", labels, |p, b| packed(p, &[&b[..9], &[10]].concat()), "label 1 is 10"),
        ("an empty file", images, |p, _| fs::write(p, b"").unwrap(), "it is empty"),
        ("an empty plain file", labels, |p, _| unpacked(p, b""), "it is empty"),
        ("a gzip file of nothing", labels, |p, _| packed(p, b""), "it is empty"),
        ("missing", labels, |p, _| fs::remove_file(p).unwrap(), "cannot find"),
        (
            "a directory",
            images,
            |p, _| {
                fs::remove_file(p).unwrap();
                fs::create_dir(p).unwrap();
            },
            "it is a directory instead of a file",
        ),
        #[cfg(unix)]
        (
            "a broken link",
            images,
            |p, _| {
                fs::remove_file(p).unwrap();
                std::os::unix::fs::symlink("/nowhere/at/all", p).unwrap();
            },
            "No such file",
        ),
        ("a web page", images, |p, _| fs::write(p, "<html>404</html>").unwrap(), "not gzip data"),
        ("unpacked under .gz", images, |p, b| fs::write(p, b).unwrap(), "take .gz off its name"),
        ("packed without .gz", images, |p, b| unpacked(p, &gzip(b)), "add .gz to its name"),
    ];
    for &(what, file, damage, fragment) in table {
        let dir = small_in("damage");
        let index = FILES.iter().position(|name| *name == file).unwrap();
        damage(&dir.join(format!("{file}.gz")), &small()[index]);
        let error = load(&dir).expect_err(what);
        let message = error.to_string();
        assert_eq!(error.kind(), Kind::Data, "{what}: {message}");
        assert!(message.contains(file), "{what}: no file in: {message}");
        assert!(message.contains(fragment), "{what}: no '{fragment}' in: {message}");
        assert!(error.hint_text().is_some_and(|hint| !hint.is_empty()), "{what}: no hint");
        // Nothing of it stays: right files in the same place are read right.
        assert_eq!(load(&small_in("damage")).expect(what).test.labels, [7, 2]);
    }
}

#[test]
fn a_changed_byte_of_mnist_is_found_by_its_checksum() {
    let dir = mnist_in("changed");
    let path = dir.join("t10k-labels-idx1-ubyte.gz");
    let mut bytes = unpack(&path);
    assert_eq!(bytes[8], 7);
    bytes[8] = 1;
    fs::write(&path, gzip(&bytes)).unwrap();
    let error = data::load_from("mnist", Some(&dir)).unwrap_err();
    assert!(error.to_string().contains("t10k-labels-idx1-ubyte.gz"), "{error}");
    assert!(error.to_string().contains("instead of ff7bcfd416de"), "{error}");
    let hint = error.hint_text().unwrap();
    assert!(hint.contains("data fetch mnist --to"), "{hint}");
    // The same bytes are a right data set of somebody's own; and the crate's arrays are those of the file.
    assert_eq!(load(&dir).unwrap().test.labels[0], 1);
}

#[test]
fn mnist_with_other_counts_is_refused_before_it_is_read() {
    let error = data::load_from("mnist", Some(&small_in("short"))).unwrap_err();
    assert!(error.to_string().contains("3 images where 60000 are expected"), "{error}");
    assert!(error.hint_text().unwrap().contains("3 more of the four files"), "{error:?}");
}

#[test]
fn the_first_place_that_holds_a_file_is_taken() {
    let (empty, one, two) = (dir("place-0"), mnist_in("place-1"), mnist_in("place-2"));
    let places = [empty.clone(), one.clone(), two.clone()];
    assert_eq!(find_among("mnist", None, &places).unwrap().dir, one);
    assert_eq!(find_among("mnist", Some(&two), &places).unwrap().dir, two);
    assert_eq!(find_among("mnist", Some(Path::new("")), &places).unwrap().dir, one);
}

#[test]
fn a_data_dir_that_holds_nothing_is_an_error_and_no_other_is_taken() {
    let (empty, full) = (dir("nothing"), mnist_in("something"));
    let error = find_among("mnist", Some(&empty), &[full]).unwrap_err();
    assert!(error.to_string().contains(empty.to_str().unwrap()), "{error}");
    assert!(!error.to_string().contains("something"), "{error}");
    assert!(error.hint_text().unwrap().contains("--to"), "{error:?}");
}

#[test]
fn fashion_stands_in_a_folder_of_its_own() {
    let place = mnist_in("clothes");
    assert!(find_among("fashion", None, std::slice::from_ref(&place)).is_err());
    fs::create_dir(place.join("fashion")).unwrap();
    fs::write(place.join("fashion").join(FILES[0]), b"x").unwrap();
    let found = find_among("fashion", None, std::slice::from_ref(&place)).unwrap();
    assert_eq!(found.dir, place.join("fashion"));
}

#[test]
fn an_unknown_name_is_a_usage_error() {
    let error = data::load_from("cifar", None).unwrap_err();
    assert_eq!((error.kind(), error.exit_code()), (Kind::Usage, 2));
    let error = data::load_from("./not/there", None).unwrap_err();
    assert!(error.to_string().contains("./not/there"), "{error}");
}

#[test]
fn verify_reports_all_four_files_and_ends_with_0() {
    let output = program(&["data", "verify"], &mnist_in("verify").join(".."));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let lines = text(&output.stdout);
    assert_eq!(lines.lines().count(), 4);
    assert!(lines.lines().all(|line| line.ends_with("  ok")), "{lines}");
    let first = "60000 images  47040016 bytes  sha256 ba891046e6505d7aadcbbe25680a0738";
    assert!(lines.contains(first), "{lines}");
}

#[test]
fn verify_reports_every_wrong_file_and_ends_with_1() {
    let dir = mnist_in("verify-wrong");
    fs::write(dir.join("train-labels-idx1-ubyte.gz"), b"").unwrap();
    fs::remove_file(dir.join("t10k-labels-idx1-ubyte.gz")).unwrap();
    let at = dir.to_str().unwrap();
    let output = program(&["data", "verify", "--data-dir", at], &dir);
    assert_eq!(output.status.code(), Some(1));
    let lines = text(&output.stdout);
    assert_eq!(lines.matches("WRONG").count(), 2, "{lines}");
    assert_eq!(lines.matches("  ok").count(), 2, "{lines}");
    let errors = text(&output.stderr);
    assert!(errors.contains("2 of the 4 files of mnist"), "{errors}");
    assert!(errors.contains("hint: run `mnist-swiglu data fetch mnist"), "{errors}");

    let output = program(&["data", "verify", "--json", "--data-dir", at], &dir);
    assert_eq!(output.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["ok"], false);
    let ok: Vec<_> = json["files"].as_array().unwrap().iter().map(|file| file["ok"].clone()).collect();
    assert_eq!(ok, [true, false, true, false]);
    assert_eq!(json["files"][0]["count"], 60_000);
}

#[test]
fn verify_says_when_no_checksums_are_known() {
    let dir = small_in("verify-own");
    let output = program(&["data", "verify", "--dataset", "."], &dir);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("no checksums are known"));
}

#[test]
fn several_loads_at_once_do_not_disturb_each_other() {
    let loads: Vec<_> =
        (0..3).map(|_| std::thread::spawn(|| data::load_from("mnist", Some(&shipped())).unwrap())).collect();
    for load in loads {
        assert_eq!(load.join().unwrap().test.labels[..3], [7, 2, 1]);
    }
}
