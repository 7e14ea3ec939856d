//! What must hold for the pictures; with `MNIST_SWIGLU_CHARTS=DIR`, they are left in DIR to be looked at.

use std::fs;

use super::*;
use crate::testing;

/// A run of `epochs` that learns as MNIST is learnt, with `noise` to tell runs apart.
fn events(epochs: u32, noise: f64, steps: bool, validation: bool) -> Vec<Event> {
    let mut events = vec![Event::Start(Box::new(testing::start()))];
    for number in 1..=epochs {
        let n = f64::from(number);
        if steps {
            for step in (100..=900).step_by(100) {
                let at = n - 1.0 + step as f64 / 938.0;
                let wiggle = 1.0 + 0.4 * (at * 37.0).sin();
                let loss = (2.3 * (-4.0 * at).exp() + 0.35 / (1.0 + at).powf(1.6)) * wiggle;
                events.push(Event::Step(Step { epoch: number, step, loss: loss as f32, lr: 0.02 }));
            }
        }
        let mut epoch = testing::epoch(
            number,
            0.36 / n.powf(1.3 + noise),
            0.05 + 0.1 / n.powf(1.5 + noise),
            0.984 - 0.02 / n.powf(1.1) + 0.004 * noise,
        );
        if validation {
            epoch.valid_loss = Some(epoch.test_loss * 1.2);
            epoch.valid_accuracy = Some(epoch.test_accuracy - 0.003);
        }
        events.push(Event::Epoch(epoch));
    }
    events
}

/// Draws both forms, checks what holds for every picture, and returns the SVG.
fn draw(name: &str, runs: &[Run]) -> String {
    let (svg, png) = (svg(runs).unwrap(), png(runs).unwrap());
    if let Some(dir) = std::env::var_os("MNIST_SWIGLU_CHARTS").map(PathBuf::from) {
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("{name}.svg")), &svg).unwrap();
        fs::write(dir.join(format!("{name}.png")), &png).unwrap();
    }
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    assert!(!svg.contains("NaN") && !svg.contains("inf\""), "{name}");
    assert!(svg.contains(r#"font-family="DejaVu Sans, Verdana, sans-serif""#));
    let picture = image::load_from_memory(&png).unwrap().to_rgb8();
    assert_eq!(picture.width(), 2240);
    // Both panels and the header hold ink: text was drawn, so the font is there.
    let ink = |x: std::ops::Range<u32>, y: std::ops::Range<u32>| {
        y.flat_map(|y| x.clone().map(move |x| (x, y)))
            .filter(|(x, y)| picture.get_pixel(*x, *y).0.iter().all(|c| *c < 120))
            .count()
    };
    assert!(ink(0..2240, 0..132) > 500, "{name}: no title");
    assert!(ink(0..150, 132..880) > 200, "{name}: no names on the left axis");
    assert!(ink(1120..1270, 132..880) > 200, "{name}: no names on the right axis");
    svg
}

fn run(label: Option<&str>, events: &[Event]) -> Run {
    Run::new(label, events)
}

#[test]
fn one_epoch_is_drawn_as_points() {
    let svg = draw("one-epoch", &[run(None, &events(1, 0.0, true, false))]);
    assert!(svg.contains("fused-frozen, cpu, fp32"));
    assert!(svg.contains("test accuracy 96.40 % after epoch 1"));
    assert_eq!(svg.matches("<circle").count(), 3 + 2);
    draw("one-epoch-no-steps", &[run(None, &events(1, 0.0, false, false))]);
}

#[test]
fn every_epoch_has_a_point_on_every_curve() {
    let svg = draw("five-epochs", &[run(None, &events(5, 0.0, true, false))]);
    assert_eq!(svg.matches("<circle").count(), 15 + 2);
    for words in ["train, single steps", "train, mean over the epoch", "784 → 512 → SwiGLU 512 → 10", "lr 0.02"] {
        assert!(svg.contains(words), "{words}");
    }
    assert!(!svg.contains("validation"));
    let svg = draw("five-epochs-validation", &[run(None, &events(5, 0.0, true, true))]);
    assert!(svg.contains("validation"));
    assert_eq!(svg.matches("<circle").count(), 25 + 3);
}

#[test]
fn long_runs_are_lines_without_dots() {
    assert_eq!(draw("thirty-epochs", &[run(None, &events(30, 0.0, true, false))]).matches("<circle").count(), 90 + 2);
    assert_eq!(draw("hundred-epochs", &[run(None, &events(100, 0.0, false, false))]).matches("<circle").count(), 2);
}

#[test]
fn runs_compared_share_axes_and_are_told_apart_by_colour() {
    let runs: Vec<Run> = ["liger-style", "fused-frozen", "fused-python-grad", "fused-triton-grad"]
        .iter()
        .enumerate()
        .map(|(index, label)| {
            run(Some(&format!("{label}, cuda:0, fp32")), &events(5, 0.15 * index as f64, true, false))
        })
        .collect();
    let svg = draw("four-runs", &runs);
    assert!(svg.contains("4 runs compared") && svg.contains("fused-python-grad, cuda:0, fp32"));
    for color in ["#0072B2", "#D55E00", "#009E73", "#CC79A7"] {
        assert!(svg.contains(color), "{color}");
    }
    // Runs of one epoch, and one that never finished an epoch.
    let mut short: Vec<Run> =
        (0..7).map(|n| run(Some(&format!("run {n}")), &events(1, 0.1 * f64::from(n), false, false))).collect();
    short.push(run(Some("nothing yet"), &events(0, 0.0, false, false)));
    draw("seven-short-runs", &short);
}

#[test]
fn losses_that_are_no_numbers_leave_gaps_and_are_counted() {
    let mut events = events(6, 0.0, true, false);
    for event in &mut events {
        match event {
            Event::Epoch(epoch) if epoch.epoch == 3 => epoch.train_loss = f64::NAN,
            Event::Epoch(epoch) if epoch.epoch == 5 => epoch.test_loss = f64::INFINITY,
            Event::Step(step) if step.epoch == 4 => step.loss = f32::NAN,
            _ => {}
        }
    }
    let svg = draw("gaps", &[run(None, &events)]);
    assert!(svg.contains("values that are not finite and leave gaps: 11"));
    let mut diverged = self::events(1, 0.0, false, false);
    if let Some(Event::Epoch(epoch)) = diverged.last_mut() {
        (epoch.train_loss, epoch.test_loss, epoch.test_accuracy) = (f64::NAN, f64::NAN, 0.098);
    }
    draw("diverged", &[run(None, &diverged)]);
}

#[test]
fn a_run_interrupted_in_its_first_epoch_shows_its_steps() {
    let mut events = events(1, 0.0, true, false);
    events.pop();
    draw("first-epoch-unfinished", &[run(None, &events)]);
}

#[test]
fn nothing_to_draw_is_an_error_that_says_so() {
    let error = svg(&[run(None, &[])]).unwrap_err();
    assert_eq!(error.kind(), Kind::Data);
    assert!(svg(&[]).is_err());
}

#[test]
fn both_files_are_written_into_the_folder() {
    let folder = testing::Folder::new("curves");
    let paths = write(folder.path(), &[run(None, &events(2, 0.0, false, false))]).unwrap();
    assert_eq!(folder.names(), ["curves.png", "curves.svg"]);
    assert!(paths.iter().all(|path| path.is_file()));
}
