//! The page in a browser: Chromium opens it, and finds every chart, as wide as it should be and with text that can be read,
//! on a desk and on a phone. Without Chromium this says that it was skipped; with MNIST_SWIGLU_REQUIRE_CHROMIUM=1 it fails.

mod common;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::Folder;
use mnist_swiglu::{measure::record, report::folder};

/// The page around the probed one: a frame as wide as wanted, which a window need not be. It puts what it is told into its
/// text, which Chromium prints.
const AROUND: &str = "<!doctype html><body><script>addEventListener('message',event=>{document.title=event.data})</script>\
<iframe style=\"border:0;width:WIDTHpx;height:900px\" src=\"probed.html\"></iframe></body>";

/// Measures the page from inside, and tells the page around it.
const PROBE: &str = "<script>addEventListener('load',()=>{parent.postMessage('PROBE'+JSON.stringify({wide:document.documentElement.scrollWidth,\
window:innerWidth,charts:[...document.querySelectorAll('figure svg')].map(svg=>{const box=svg.getBoundingClientRect();\
const texts=[...svg.querySelectorAll('text')].map(t=>t.getBoundingClientRect());return{id:svg.closest('figure').id,width:box.width,\
height:box.height,text:Math.min(...[...svg.querySelectorAll('text')].map(t=>parseFloat(t.getAttribute('font-size'))))*box.width/svg.viewBox.baseVal.width,\
outside:texts.filter(t=>t.left<box.left-1||t.right>box.right+1||t.top<box.top-1||t.bottom>box.bottom+1).length}})})+'EBORP','*')})</script>";

fn chromium() -> Option<PathBuf> {
    let named = std::env::var_os("MNIST_SWIGLU_CHROMIUM").map(PathBuf::from);
    let paths: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"];
    named.or_else(|| paths.iter().flat_map(|dir| names.map(|name| dir.join(name))).find(|path| path.is_file()))
}

/// What the probe found in a frame of `width`.
fn probe(chromium: &Path, width: u32, folder: &Folder) -> serde_json::Value {
    let page = folder.join(&format!("around-{width}.html"));
    std::fs::write(&page, AROUND.replace("WIDTH", &width.to_string())).expect("written");
    let out = folder.join(&format!("dom-{width}.html"));
    let mut child = Command::new(chromium)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-dev-shm-usage",
        ])
        .args(["--no-first-run", "--hide-scrollbars", "--virtual-time-budget=5000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", folder.join(&format!("profile-{width}")).display()))
        .arg("--window-size=1300,1000")
        .arg(format!("file://{}", page.display()))
        .stdout(std::fs::File::create(&out).expect("a file"))
        .stderr(Stdio::null())
        .spawn()
        .expect("Chromium starts");
    let begin = Instant::now();
    while child.try_wait().expect("it can be waited for").is_none() {
        if begin.elapsed() > Duration::from_secs(120) {
            let _ = child.kill();
            panic!("Chromium has not answered in two minutes");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let text = std::fs::read_to_string(&out).expect("a page");
    let found = text.split("PROBE").find_map(|rest| rest.split_once("EBORP").map(|(json, _)| json.to_owned()));
    let json = found.unwrap_or_else(|| panic!("the probe said nothing; Chromium gave {} bytes", text.len()));
    serde_json::from_str(&json.replace("&quot;", "\"").replace("&amp;", "&")).unwrap_or_else(|e| panic!("{e}: {json}"))
}

#[test]
fn a_browser_finds_every_chart_on_a_desk_and_on_a_phone() {
    let Some(chromium) = chromium() else {
        assert!(
            std::env::var_os("MNIST_SWIGLU_REQUIRE_CHROMIUM").is_none(),
            "there is no Chromium on PATH and none in MNIST_SWIGLU_CHROMIUM"
        );
        println!("skipped: no Chromium on PATH and none in MNIST_SWIGLU_CHROMIUM");
        return;
    };
    let folder = Folder::new("browser");
    let out = folder.join("report");
    let records =
        record::read(&[Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/records")]).expect("the fixed records");
    folder::write(&records, &out).expect("a report");
    let page = std::fs::read_to_string(out.join("index.html")).expect("a page");
    std::fs::write(folder.join("probed.html"), page.replace("</body>", &format!("{PROBE}</body>"))).expect("written");
    let expected: Vec<&str> = page.split("<figure id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(expected.len() > 15);

    // Two columns of charts on a desk, one on a phone; text of at least 9 pixels there.
    for (width, least, most, text) in [(1200, 480.0, 600.0, 12.0), (400, 320.0, 400.0, 9.0)] {
        let found = probe(&chromium, width, &folder);
        assert_eq!(found["window"], width, "the frame is as wide as asked");
        assert_eq!(found["wide"], found["window"], "nothing makes the page scroll sideways");
        let charts = found["charts"].as_array().expect("charts");
        let ids: Vec<&str> = charts.iter().filter_map(|chart| chart["id"].as_str()).collect();
        assert_eq!(ids, expected);
        for chart in charts {
            let number = |name: &str| chart[name].as_f64().unwrap_or_else(|| panic!("{name} in {chart}"));
            assert!((least..=most).contains(&number("width")), "{width}: {chart}");
            assert!(number("height") > 150.0, "{width}: {chart}");
            assert!(number("text") >= text, "{width}: text too small in {chart}");
            assert_eq!(number("outside"), 0.0, "{width}: text outside of its chart in {chart}");
        }
    }
}
