//! Downloads: mirrors that fail in every way, resumption, and that no good file is ever replaced by a bad one.
//! The servers are on 127.0.0.1.

#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use flate2::{Compression, write::GzEncoder};
use mnist_swiglu::data::{
    fetch::{Options, fetch},
    idx::{self, Content},
    sets::Published,
};
use sha2::{Digest, Sha256};

const FILES: [&str; 4] = [
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
];

fn dir(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fetch").join(name);
    let _ = fs::remove_dir_all(&dir);
    dir
}

fn gzip(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The four files of a set with 40 training images and 10 test images, unpacked.
fn files() -> [Vec<u8>; 4] {
    let images = |count: usize| {
        let body: Vec<u8> = (0..count * 784).map(|i| (i * i / 7) as u8).collect();
        idx::write(Content::Images, &body).unwrap()
    };
    let labels = |count: u8| {
        let body: Vec<u8> = (0..count).map(|i| i % 10).collect();
        idx::write(Content::Labels, &body).unwrap()
    };
    [images(40), labels(40), images(10), labels(10)]
}

fn set() -> Published {
    Published {
        name: "little",
        folder: "",
        train: 40,
        test: 10,
        sha256: files().map(|bytes| {
            let hex: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
            &*hex.leak()
        }),
        mirrors: &[],
    }
}

/// What a mirror does with a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    Good,
    /// Compressed in another way: another file, the same contents.
    OtherLevel,
    Status(u16),
    /// Announces everything, sends half, and closes.
    Truncated,
    /// Closes without a word.
    HangsUp,
    /// Right gzip data of wrong images.
    WrongBytes,
    /// A web page with status 200.
    Page,
    /// Sends without end.
    Endless,
    /// Accepts, and says nothing for longer than the client's patience.
    Silent,
    /// Ignores Range.
    NoRange,
}

/// A mirror: its URL, and the request lines with their Range, as they came.
struct Mirror {
    url: String,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Mirror {
    fn new(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/set/", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that closes early is part of these tests.
                let _ = serve(stream.unwrap(), manner, &log);
            }
        });
        Mirror { url, seen }
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

fn serve(mut stream: TcpStream, manner: Manner, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let path = lines.next().unwrap()?.split(' ').nth(1).unwrap().to_owned();
    let mut from = 0_usize;
    for line in lines {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(range) = line.strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse().unwrap();
        }
    }
    let name = path.rsplit('/').next().unwrap();
    log.lock().unwrap().push(format!("{name} {from}"));
    let index = FILES.iter().position(|file| *file == name).unwrap();
    let level = if manner == Manner::OtherLevel { 1 } else { 9 };
    let mut body = gzip(&files()[index], level);
    match manner {
        Manner::HangsUp => return Ok(()),
        Manner::Silent => thread::sleep(Duration::from_secs(2)),
        Manner::Status(status) => {
            return write!(stream, "HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
        Manner::WrongBytes => {
            let mut wrong = files()[index].clone();
            *wrong.last_mut().unwrap() ^= 1;
            body = gzip(&wrong, 9);
        }
        Manner::Page => body = b"<html>please log in</html>".to_vec(),
        Manner::Endless => {
            write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            loop {
                stream.write_all(&[0; 4096])?;
            }
        }
        _ => {}
    }
    let whole = body.len();
    if from > 0 && manner != Manner::NoRange {
        if from >= whole {
            return write!(stream, "HTTP/1.1 416 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
        body.drain(..from);
        write!(stream, "HTTP/1.1 206 Partial\r\nContent-Range: bytes {from}-{}/{whole}\r\n", whole - 1)?;
    } else {
        write!(stream, "HTTP/1.1 200 OK\r\n")?;
    }
    write!(stream, "Content-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
    if manner == Manner::Truncated {
        body.truncate(body.len() / 2);
    }
    stream.write_all(&body)
}

fn options(mirrors: &[&Mirror]) -> Options {
    let mut options = Options::new(&set(), None);
    options.mirrors = mirrors.iter().map(|mirror| mirror.url.clone()).collect();
    options.patience = Duration::from_millis(700);
    options.proxy_from_env = false;
    options
}

fn get(dir: &Path, mirrors: &[&Mirror]) -> mnist_swiglu::Result<()> {
    fetch(&set(), dir, &options(mirrors), &mut |_| {})
}

/// The four files are whole and right, and nothing else is there.
fn assert_complete(dir: &Path) {
    for (file, wanted) in FILES.iter().zip(files()) {
        let mut bytes = Vec::new();
        let packed = fs::File::open(dir.join(file)).unwrap();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(packed), &mut bytes).unwrap();
        assert_eq!(bytes, wanted, "{file}");
    }
    assert_eq!(fs::read_dir(dir).unwrap().count(), 4, "something was left over");
}

#[test]
fn a_good_mirror_gives_all_four_files() {
    let (dir, mirror) = (dir("good"), Mirror::new(Manner::Good));
    get(&dir, &[&mirror]).unwrap();
    assert_complete(&dir);
    assert_eq!(mirror.seen(), FILES.map(|file| format!("{file} 0")));
}

#[test]
fn a_mirror_that_fails_in_any_way_is_left_for_the_next() {
    for manner in [
        Manner::Status(500),
        Manner::Status(404),
        Manner::Truncated,
        Manner::HangsUp,
        Manner::WrongBytes,
        Manner::Page,
        Manner::Endless,
        Manner::Silent,
    ] {
        let dir = dir("next");
        let (bad, good) = (Mirror::new(manner), Mirror::new(Manner::Good));
        get(&dir, &[&bad, &good]).unwrap_or_else(|e| panic!("{manner:?}: {e}"));
        assert_complete(&dir);
        assert_eq!(bad.seen().len(), 1, "{manner:?}: it was asked again for the other files");
    }
}

#[test]
fn what_arrived_before_the_connection_broke_does_not_come_again() {
    let (dir, bad, good) = (dir("resume"), Mirror::new(Manner::Truncated), Mirror::new(Manner::Good));
    let half = gzip(&files()[0], 9).len() / 2;
    let error = get(&dir, &[&bad]).unwrap_err();
    assert!(error.to_string().contains("train-images-idx3-ubyte.gz"), "{error}");
    assert_eq!(fs::metadata(dir.join("train-images-idx3-ubyte.gz.part")).unwrap().len(), half as u64);
    get(&dir, &[&good]).unwrap();
    assert_complete(&dir);
    assert_eq!(good.seen()[0], format!("train-images-idx3-ubyte.gz {half}"));
}

#[test]
fn a_part_that_does_not_fit_is_given_up_and_fetched_afresh() {
    for (manner, part) in [
        // The beginning of another compression; a server without ranges; more than there is.
        (Manner::Good, gzip(&files()[0], 1)[..500].to_vec()),
        (Manner::OtherLevel, gzip(&files()[0], 9)[..500].to_vec()),
        (Manner::NoRange, gzip(&files()[0], 9)[..500].to_vec()),
        (Manner::Good, vec![0; 1_000_000]),
    ] {
        let (dir, mirror) = (dir("part"), Mirror::new(manner));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("train-images-idx3-ubyte.gz.part"), part).unwrap();
        get(&dir, &[&mirror]).unwrap_or_else(|e| panic!("{manner:?}: {e}"));
        assert_complete(&dir);
    }
}

#[test]
fn good_files_are_kept_and_a_bad_one_is_replaced() {
    let (dir, mirror) = (dir("kept"), Mirror::new(Manner::Good));
    get(&dir, &[&mirror]).unwrap();
    get(&dir, &[&mirror]).unwrap();
    assert_eq!(mirror.seen().len(), 4, "a good file was downloaded again");
    fs::write(dir.join(FILES[1]), b"damaged").unwrap();
    get(&dir, &[&mirror]).unwrap();
    assert_complete(&dir);
    assert_eq!(mirror.seen()[4..], ["train-labels-idx1-ubyte.gz 0"]);
}

#[test]
fn force_downloads_again_but_never_replaces_a_good_file_by_a_bad_one() {
    let (dir, good, bad) = (dir("force"), Mirror::new(Manner::Good), Mirror::new(Manner::WrongBytes));
    get(&dir, &[&good]).unwrap();
    let force = |mirror: &Mirror| {
        let mut options = options(&[mirror]);
        options.force = true;
        fetch(&set(), &dir, &options, &mut |_| {})
    };
    assert!(force(&bad).is_err());
    assert_complete(&dir);
    force(&good).unwrap();
    assert_complete(&dir);
    assert_eq!(good.seen().len(), 8);
}

#[test]
fn without_a_network_the_error_names_the_files_and_where_to_put_them() {
    let dir = dir("none");
    // A port that was just given back: nobody listens there.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut options = options(&[]);
    options.mirrors = vec![format!("http://{address}")];
    let error = fetch(&set(), &dir, &options, &mut |_| {}).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains(&address.to_string()), "{cause}");
    let hint = error.hint_text().unwrap();
    assert!(FILES.iter().all(|file| hint.contains(file)), "{hint}");
    assert!(hint.contains(dir.to_str().unwrap()), "{hint}");
}

#[test]
fn two_fetches_into_one_directory_do_not_mix() {
    let (dir, slow, good) = (dir("two"), Mirror::new(Manner::Silent), Mirror::new(Manner::Good));
    let first = {
        let (dir, mut options) = (dir.clone(), options(&[&slow]));
        options.patience = Duration::from_secs(20);
        thread::spawn(move || fetch(&set(), &dir, &options, &mut |_| {}))
    };
    while slow.seen().is_empty() {
        thread::sleep(Duration::from_millis(5));
    }
    let error = get(&dir, &[&good]).unwrap_err();
    assert!(error.to_string().contains("another process is fetching"), "{error}");
    first.join().unwrap().unwrap();
    assert_complete(&dir);
}

#[test]
fn the_program_asks_the_mirror_in_the_environment_first_and_goes_through_a_proxy() {
    // The proxy refuses; that it was asked for the mirror's host is what counts.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    let asked = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
        let _ = stream.write_all(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n");
        line
    });
    let dir = dir("proxy");
    let output = Command::new(env!("CARGO_BIN_EXE_mnist-swiglu"))
        .args(["data", "fetch", "mnist", "--to"])
        .arg(&dir)
        .env("MNIST_SWIGLU_MIRROR", "http://mirror.example/mnist")
        .env("ALL_PROXY", &proxy)
        .env_remove("NO_PROXY")
        .env_remove("no_proxy")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let line = asked.join().unwrap();
    assert!(line.contains("mirror.example"), "{line}");
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("none of 3 mirrors gave it"), "{errors}");
    assert!(errors.contains("put train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, "), "{errors}");
}
