//! Colours that people with any colour vision can tell apart, after Okabe and Ito (2008).

use plotters::style::RGBColor;

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
