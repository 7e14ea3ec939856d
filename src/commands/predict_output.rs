//! What `predict` says of a picture: text for people, a JSON object for programs.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::terminal_picture::{self, Mode};
use crate::data::{CLASSES, PIXELS, SIDE};

/// Where an image came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A picture's file.
    Picture(PathBuf),
    /// A test image of the data set.
    TestImage(u32),
}

/// An image and what the model makes of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// Where the image came from.
    pub source: Source,
    /// The class of the highest probability.
    pub digit: u8,
    /// Of each class.
    pub probabilities: [f32; CLASSES],
    /// The image as the model saw it.
    pub pixels: [u8; PIXELS],
    /// The true class, when it is known.
    pub label: Option<u8>,
    /// What was done to the picture before.
    pub notes: Vec<String>,
}

/// How much text is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// One line, for files and pipes.
    Line,
    /// The line, then the image and a bar for each class.
    Full(Mode),
}

impl Style {
    /// Full on a terminal, a line anywhere else.
    pub fn from_env() -> Style {
        use std::io::IsTerminal;
        if std::io::stdout().is_terminal() { Style::Full(Mode::from_env()) } else { Style::Line }
    }
}

/// The prediction as text, without a line feed at its end. Begins with the one line that says it all.
pub fn text(prediction: &Prediction, style: Style) -> String {
    let mut lines = vec![summary(prediction)];
    if let Style::Full(mode) = style {
        lines.extend(prediction.notes.iter().map(|note| format!("  {note}")));
        let picture = terminal_picture::picture(&prediction.pixels, mode);
        let bars = terminal_picture::bars(&prediction.probabilities, mode);
        let above = (picture.len() - bars.len()) / 2;
        for (i, row) in picture.into_iter().enumerate() {
            let bar = i.checked_sub(above).and_then(|i| bars.get(i));
            let line = bar.map_or(format!("  {row}"), |bar| format!("  {row}   {bar}"));
            // Without colours a row of ground is nothing but spaces.
            lines.push(line.trim_end().to_string());
        }
    }
    lines.join("\n")
}

fn summary(prediction: &Prediction) -> String {
    let digit = prediction.digit;
    let share = prediction.probabilities.get(usize::from(digit)).copied().unwrap_or(f32::NAN);
    let verdict = match prediction.label {
        Some(label) if label == digit => "  right".to_string(),
        Some(label) => format!("  wrong: it is {label}"),
        None => String::new(),
    };
    let source = match &prediction.source {
        Source::Picture(path) => printable(&path.display().to_string()),
        Source::TestImage(index) => format!("test image {index}"),
    };
    format!("digit {digit} ({})  {source}{verdict}", terminal_picture::percent(share))
}

/// A file's name may hold anything, also what would move the cursor.
fn printable(name: &str) -> String {
    let safe = |c: char| {
        if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }
    };
    name.chars().map(safe).collect()
}

/// The prediction as a JSON object: `picture` or `test_image`, `digit`, `probability`, `probabilities`, `label` and
/// `right` (null when the truth is not known), `notes`, and the image as the model saw it, 28 rows of 28 in `pixels`.
pub fn json(prediction: &Prediction) -> Value {
    let rows: Vec<&[u8]> = prediction.pixels.chunks(SIDE).collect();
    let mut object = json!({
        "digit": prediction.digit,
        "probability": prediction.probabilities.get(usize::from(prediction.digit)),
        "probabilities": prediction.probabilities,
        "label": prediction.label,
        "right": prediction.label.map(|label| label == prediction.digit),
        "notes": prediction.notes,
        "pixels": rows,
    });
    match &prediction.source {
        Source::Picture(path) => object["picture"] = json!(path.to_string_lossy()),
        Source::TestImage(index) => object["test_image"] = json!(index),
    }
    object
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn seven() -> Prediction {
        let mut probabilities = [0.0; CLASSES];
        (probabilities[7], probabilities[1]) = (0.992, 0.008);
        let mut pixels = [0; PIXELS];
        // A horizontal bar over the whole width, rows 4 and 5.
        pixels[4 * SIDE..6 * SIDE].fill(255);
        Prediction {
            source: Source::Picture("seven.png".into()),
            digit: 7,
            probabilities,
            pixels,
            label: None,
            notes: vec!["read as dark ink on a light ground".to_string()],
        }
    }

    #[test]
    fn a_line_says_it_all() {
        let mut prediction = seven();
        assert_eq!(text(&prediction, Style::Line), "digit 7 (99.2%)  seven.png");
        prediction.source = Source::TestImage(4);
        prediction.label = Some(7);
        assert_eq!(text(&prediction, Style::Line), "digit 7 (99.2%)  test image 4  right");
        prediction.label = Some(1);
        assert_eq!(text(&prediction, Style::Line), "digit 7 (99.2%)  test image 4  wrong: it is 1");
    }

    #[test]
    fn a_name_cannot_send_escapes_to_the_terminal() {
        let mut prediction = seven();
        prediction.source = Source::Picture("a\x1b[2Jb\n.png".into());
        assert_eq!(text(&prediction, Style::Line), "digit 7 (99.2%)  a\u{FFFD}[2Jb\u{FFFD}.png");
    }

    #[test]
    fn the_image_and_the_bars_stand_side_by_side() {
        let shown = text(&seven(), Style::Full(Mode::Ascii));
        let lines: Vec<&str> = shown.split('\n').collect();
        assert_eq!(lines.len(), 1 + 1 + 14);
        assert_eq!(lines[1], "  read as dark ink on a light ground");
        assert_eq!(lines[2], "");
        assert_eq!(lines[4], "  @@@@@@@@@@@@@@@@@@@@@@@@@@@@   0                          0.0%");
        assert_eq!(lines[11], "                                 7  ####################   99.2%");
    }

    #[test]
    fn the_object_has_everything() {
        let mut prediction = seven();
        prediction.label = Some(1);
        let object = json(&prediction);
        assert_eq!(object["picture"], "seven.png");
        assert_eq!((&object["digit"], &object["label"], &object["right"]), (&json!(7), &json!(1), &json!(false)));
        assert_eq!(object["probability"], object["probabilities"][7]);
        assert_eq!(object["pixels"].as_array().unwrap().len(), 28);
        assert_eq!(object["pixels"][4][0], 255);
        assert!(!object.to_string().contains('\n'));
    }
}
