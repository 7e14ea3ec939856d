//! Colours that people with any colour vision can tell apart, after Okabe and Ito (2008), and what they become on a dark
//! ground.

use plotters::style::RGBColor;

/// The ground.
pub const PAPER: RGBColor = RGBColor(0xff, 0xff, 0xff);

/// Text and axes.
pub const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
/// Second-rank text.
pub const MUTED: RGBColor = RGBColor(0x66, 0x66, 0x66);
/// Grid lines.
pub const GRID: RGBColor = RGBColor(0xe4, 0xe4, 0xe4);

/// Blue.
pub const BLUE: RGBColor = RGBColor(0x00, 0x72, 0xb2);
/// Vermilion.
pub const VERMILION: RGBColor = RGBColor(0xd5, 0x5e, 0x00);
/// Bluish green.
pub const GREEN: RGBColor = RGBColor(0x00, 0x9e, 0x73);

/// The colours of things compared, in the order in which they are given out. Yellow is left out: it is too pale for
/// lines on white.
pub const SERIES: [RGBColor; 7] = [
    BLUE,
    VERMILION,
    GREEN,
    RGBColor(0xcc, 0x79, 0xa7), // reddish purple
    RGBColor(0xe6, 0x9f, 0x00), // orange
    RGBColor(0x56, 0xb4, 0xe9), // sky blue
    RGBColor(0x00, 0x00, 0x00), // black
];

/// The colour of the thing with this index; colours come again after the seventh.
pub fn series(index: usize) -> RGBColor {
    SERIES[index % SERIES.len()]
}

/// What each colour becomes on a dark ground: as easily told apart, and light enough to be seen.
const DARK: [(RGBColor, u32); 11] = [
    (PAPER, 0x15181d),
    (INK, 0xe8e8e8),
    (MUTED, 0xa9afb8),
    (GRID, 0x343a43),
    (BLUE, 0x4aa3df),
    (VERMILION, 0xff7f2a),
    (GREEN, 0x2bc293),
    (SERIES[3], 0xdd90bb),
    (SERIES[4], 0xe6a61a),
    (SERIES[5], 0x74c4ef),
    (SERIES[6], 0xd0d0d0),
];

/// Style rules that turn the colours of an SVG under `selector` into those for a dark ground.
pub fn dark_css(selector: &str) -> String {
    DARK.iter()
        .map(|(RGBColor(r, g, b), dark)| {
            let light = format!("#{r:02X}{g:02X}{b:02X}");
            let rule = |name: &str| format!("{selector}[{name}=\"{light}\"]{{{name}:#{dark:06x}}}");
            rule("fill") + &rule("stroke")
        })
        .collect()
}
