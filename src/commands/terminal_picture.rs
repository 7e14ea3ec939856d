//! Pictures and bars for a terminal, as text. Which characters and colours a terminal has is decided once, by
//! [`Mode::from_env`]; everything else here is a pure function of that.

use std::fmt::Write;

use crate::data::{CLASSES, PIXELS, SIDE};

/// What a terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Half blocks in 24-bit grey.
    TrueColour,
    /// Half blocks in the 24 greys of the 256-colour palette.
    Colour256,
    /// Half blocks without colour: a pixel is ink or it is not.
    Blocks,
    /// A ramp of ASCII characters.
    Ascii,
}

impl Mode {
    /// What the terminal of this process says of itself.
    pub fn from_env() -> Mode {
        Mode::choose(|name| std::env::var(name).ok(), cfg!(windows))
    }

    /// As [`Mode::from_env`], of any environment.
    ///
    /// `NO_COLOR` (when not empty) takes colour away, `TERM=dumb` and a locale that is not UTF-8 everything but ASCII.
    pub fn choose(variable: impl Fn(&str) -> Option<String>, windows: bool) -> Mode {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let term = set("TERM").unwrap_or_default();
        let new_console = windows && set("WT_SESSION").is_some();
        // The first of these that is set is the one that counts.
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| set(name)).unwrap_or_default();
        let locale = locale.to_ascii_lowercase();
        let unicode = new_console || locale.contains("utf-8") || locale.contains("utf8");
        if !unicode || term == "dumb" {
            return Mode::Ascii;
        }
        if set("NO_COLOR").is_some() {
            return Mode::Blocks;
        }
        let colour = set("COLORTERM").unwrap_or_default();
        if new_console || colour == "truecolor" || colour == "24bit" || term.ends_with("-direct") {
            Mode::TrueColour
        } else if term.contains("256color") {
            Mode::Colour256
        } else {
            Mode::Blocks
        }
    }
}

/// The lines of a picture of `pixels`, 28 columns wide and 14 high: a character covers two pixels, one above the other.
pub fn picture(pixels: &[u8; PIXELS], mode: Mode) -> Vec<String> {
    pairs_of_rows(pixels, SIDE, mode)
}

fn pairs_of_rows(pixels: &[u8], width: usize, mode: Mode) -> Vec<String> {
    let pair = |rows: &[u8]| {
        let (upper, lower) = rows.split_at(width);
        row(upper.iter().copied().zip(lower.iter().copied()), mode)
    };
    pixels.chunks_exact(2 * width).map(pair).collect()
}

/// One line: for each column the upper and the lower pixel.
fn row(pixels: impl Iterator<Item = (u8, u8)>, mode: Mode) -> String {
    let mut line = String::new();
    let mut colours = None;
    for (upper, lower) in pixels {
        let shown = match mode {
            Mode::TrueColour => (upper, lower),
            Mode::Colour256 => (grey_256(upper), grey_256(lower)),
            Mode::Blocks => {
                line.push(match (upper >= 128, lower >= 128) {
                    (false, false) => ' ',
                    (true, false) => '▀',
                    (false, true) => '▄',
                    (true, true) => '█',
                });
                continue;
            }
            Mode::Ascii => {
                const RAMP: &[u8] = b" .:-=+*#%@";
                let mean = (usize::from(upper) + usize::from(lower)) / 2;
                line.push(char::from(RAMP[(mean * (RAMP.len() - 1) + 127) / 255]));
                continue;
            }
        };
        // Most neighbours are alike: colours are said again when they change, for the sake of slow connections.
        if colours != Some(shown) {
            let (u, l) = shown;
            // Writing to a String cannot fail.
            let _ = match mode {
                Mode::TrueColour => write!(line, "\x1b[38;2;{u};{u};{u}m\x1b[48;2;{l};{l};{l}m"),
                _ => write!(line, "\x1b[38;5;{u}m\x1b[48;5;{l}m"),
            };
            colours = Some(shown);
        }
        line.push('▀');
    }
    if colours.is_some() {
        line.push_str("\x1b[0m");
    }
    line
}

/// The nearest grey of the 256-colour palette: 16 is black, 232 to 255 are 8, 18, ... 238, 231 is white.
fn grey_256(value: u8) -> u8 {
    match value {
        0..=3 => 16,
        247..=255 => 231,
        _ => 232 + ((value.saturating_sub(3)) / 10).min(23),
    }
}

/// Columns of a full bar.
const BAR: usize = 20;

/// The lines of a bar chart of ten probabilities: the class, its bar, its share in per cent.
pub fn bars(probabilities: &[f32; CLASSES], mode: Mode) -> Vec<String> {
    let line = |(class, &p): (usize, &f32)| format!("{class}  {}  {:>6}", bar(p, mode), percent(p));
    probabilities.iter().enumerate().map(line).collect()
}

fn bar(share: f32, mode: Mode) -> String {
    // Not a number counts as nothing here; its text says what it is.
    let share = if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) };
    let drawn = if mode == Mode::Ascii {
        "#".repeat((share * BAR as f32).round() as usize)
    } else {
        const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
        let eighths = (share * (BAR * 8) as f32).round() as usize;
        "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
    };
    let empty = BAR - drawn.chars().count();
    drawn + &" ".repeat(empty)
}

/// A probability in per cent with one digit; 100% is said only of what is certain to the last bit.
pub fn percent(p: f32) -> String {
    if !p.is_finite() {
        format!("{p}")
    } else if p < 1.0 && p > 0.9995 {
        ">99.9%".to_string()
    } else {
        format!("{:.1}%", p * 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two rows of four pixels.
    const TINY: [u8; 8] = [0, 255, 0, 255, 0, 0, 255, 255];

    #[test]
    fn a_tiny_picture_is_drawn_in_each_mode() {
        assert_eq!(pairs_of_rows(&TINY, 4, Mode::Blocks), [" ▀▄█"]);
        assert_eq!(pairs_of_rows(&TINY, 4, Mode::Ascii), [" ==@"]);
        assert_eq!(
            pairs_of_rows(&[0, 0, 255, 0, 0, 7], 3, Mode::TrueColour),
            ["\x1b[38;2;0;0;0m\x1b[48;2;0;0;0m▀▀\x1b[38;2;255;255;255m\x1b[48;2;7;7;7m▀\x1b[0m"]
        );
        assert_eq!(
            pairs_of_rows(&[0, 128, 255, 0], 2, Mode::Colour256),
            ["\x1b[38;5;16m\x1b[48;5;231m▀\x1b[38;5;244m\x1b[48;5;16m▀\x1b[0m"]
        );
    }

    #[test]
    fn an_image_is_fourteen_lines_of_twenty_eight_columns() {
        let lines = picture(&[200; PIXELS], Mode::Blocks);
        assert_eq!(lines, vec!["█".repeat(28); 14]);
    }

    #[test]
    fn greys_of_the_palette_are_the_nearest_ones() {
        for value in 0..=255_u8 {
            let brightness = match grey_256(value) {
                16 => 0,
                231 => 255,
                grey => 8 + 10 * (i32::from(grey) - 232),
            };
            let off = (i32::from(value) - brightness).abs();
            assert!(off <= 9 && (off <= 5 || value > 238), "{value} shown as {brightness}");
        }
    }

    #[test]
    fn bars_are_as_long_as_their_shares() {
        let mut shares = [0.0; 10];
        (shares[7], shares[1], shares[2]) = (0.5, 0.49, 0.01);
        let lines = bars(&shares, Mode::Blocks);
        assert_eq!(lines[0], "0                          0.0%");
        assert_eq!(lines[1], "1  █████████▊             49.0%");
        assert_eq!(lines[2], "2  ▎                       1.0%");
        assert_eq!(lines[7], "7  ██████████             50.0%");
        assert_eq!(bars(&shares, Mode::Ascii)[1], "1  ##########             49.0%");
        assert_eq!(bars(&[1.0; 10], Mode::Ascii)[9], "9  ####################  100.0%");
    }

    #[test]
    fn odd_shares_are_shown_and_never_rounded_up_to_certainty() {
        assert_eq!(percent(0.999_96), ">99.9%");
        assert_eq!(percent(1.0), "100.0%");
        assert_eq!(percent(f32::NAN), "NaN");
        assert_eq!(bars(&[f32::NAN; 10], Mode::Ascii)[0], "0                           NaN");
    }

    #[test]
    fn the_environment_decides_the_mode() {
        let mode = |pairs: &[(&str, &str)]| {
            Mode::choose(|name| pairs.iter().find(|p| p.0 == name).map(|p| p.1.to_string()), false)
        };
        let utf8 = ("LANG", "en_GB.UTF-8");
        assert_eq!(mode(&[]), Mode::Ascii);
        assert_eq!(mode(&[("TERM", "xterm-256color")]), Mode::Ascii);
        assert_eq!(mode(&[utf8]), Mode::Blocks);
        assert_eq!(mode(&[utf8, ("TERM", "xterm-256color")]), Mode::Colour256);
        assert_eq!(mode(&[utf8, ("TERM", "xterm-256color"), ("COLORTERM", "truecolor")]), Mode::TrueColour);
        assert_eq!(mode(&[utf8, ("TERM", "xterm-256color"), ("NO_COLOR", "1")]), Mode::Blocks);
        assert_eq!(mode(&[utf8, ("TERM", "xterm-256color"), ("NO_COLOR", "")]), Mode::Colour256);
        assert_eq!(mode(&[utf8, ("TERM", "dumb"), ("COLORTERM", "truecolor")]), Mode::Ascii);
        // LC_ALL rules over LANG.
        assert_eq!(mode(&[utf8, ("LC_ALL", "C")]), Mode::Ascii);
    }
}
