//! Ink to MNIST's form: the longer side of the digit 20 pixels, its proportions kept, its centre of mass in the middle of
//! 28 x 28 pixels.

use super::{Grey, PIXELS, SIDE, ink::Ink};

/// Pixels of the digit's longer side.
const BOX: usize = 20;
/// Where MNIST's digits have their centre of mass, in pixels from the first pixel's centre, across and down: all of them
/// between 13.5 and 14.5, because they were moved by whole pixels.
pub(super) const CENTRE: f32 = 14.0;
/// Ink from this on is inside the digit's box; less is a blur. All of MNIST's digits measure 20 pixels so.
const EDGE: f32 = 0.25;
/// Ink from this on is inside a stroke, where its width is measured.
const INSIDE: f32 = 0.5;
/// Pixels that a stroke has at least, in the result. Nineteen in twenty of MNIST's digits have more, 2.3 on average; a fine
/// pen's would have less than one.
const MIN_STROKE: f32 = 1.5;

/// The picture in MNIST's form, and whether its lines had to be widened.
pub(super) fn place(ink: &Ink) -> ([u8; PIXELS], bool) {
    let map = &ink.map;
    let (left, right) = extent((0..map.width).map(|x| (0..map.height).any(|y| map.values[y * map.width + x] >= EDGE)));
    let (top, bottom) =
        extent((0..map.height).map(|y| map.values[y * map.width..][..map.width].iter().any(|&v| v >= EDGE)));
    let (width, height) = ((right - left) as f32, (bottom - top) as f32);
    // Pixels of the picture to one of the result, the same across and down.
    let scale = width.max(height) / BOX as f32;
    let stroke = stroke_width(map) / scale;
    let widened = stroke < MIN_STROKE;
    // What a pixel of the result averages over. No less than one pixel of the picture: that is linear interpolation.
    let blur = (scale * (1.0 + (MIN_STROKE - stroke).max(0.0))).max(1.0);
    // The corner of the digit's box on the corner of a pixel of the result, as if it were resized alone. Ink just outside
    // the box is kept.
    let corner = (left as f32, top as f32);
    let margin = (SIDE - BOX) as f32 / 2.0 * scale;
    let canvas = resample(map, (corner.0 - margin, corner.1 - margin), scale, blur);
    let peak = canvas.iter().copied().fold(0.0, f32::max);
    let pixels = canvas.map(|v| (v / peak * 255.0).round() as u8);
    (centred(&pixels), widened)
}

/// First and one past the last `true`.
fn extent(inked: impl Iterator<Item = bool>) -> (usize, usize) {
    let mut range = (0, 1);
    let mut seen = false;
    for (i, _) in inked.enumerate().filter(|(_, inked)| *inked) {
        if !seen {
            range.0 = i;
            seen = true;
        }
        range.1 = i + 1;
    }
    range
}

/// The mean width of the strokes, in pixels of the picture: a long band has two long sides.
fn stroke_width(map: &Grey) -> f32 {
    let (w, h) = (map.width, map.height);
    let inside = |x: usize, y: usize| x < w && y < h && map.values[y * w + x] >= INSIDE;
    let (mut area, mut sides) = (0.0, 0.0);
    for y in 0..h {
        for x in 0..w {
            if inside(x, y) {
                area += 1.0;
                let open = [(x + 1, y), (x, y + 1), (x.wrapping_sub(1), y), (x, y.wrapping_sub(1))];
                sides += open.iter().filter(|&&(x, y)| !inside(x, y)).count() as f32;
            }
        }
    }
    // Pixel sides along an outline are longer than the outline: by 4 / pi on average over its directions.
    2.0 * area / (sides * std::f32::consts::FRAC_PI_4)
}

/// 28 x 28 samples from `corner` on, `scale` pixels of the picture apart, each the mean of a square of side `blur`.
fn resample(map: &Grey, corner: (f32, f32), scale: f32, blur: f32) -> [f32; PIXELS] {
    // Weight of each source pixel in each sample, along one axis.
    let axis = |corner: f32, size: usize| -> Vec<Vec<(usize, f32)>> {
        let samples = 0..SIDE;
        samples
            .map(|i| {
                let centre = corner + (i as f32 + 0.5) * scale;
                let (from, to) = (centre - blur / 2.0, centre + blur / 2.0);
                let pixels = from.floor().max(0.0) as usize..(to.ceil().max(0.0) as usize).min(size);
                pixels.map(|p| (p, (to.min(p as f32 + 1.0) - from.max(p as f32)).max(0.0) / blur)).collect()
            })
            .collect()
    };
    let (across, down) = (axis(corner.0, map.width), axis(corner.1, map.height));
    std::array::from_fn(|i| {
        let (across, down) = (&across[i % SIDE], &down[i / SIDE]);
        let row = |y: usize| across.iter().map(|&(x, weight)| weight * map.values[y * map.width + x]).sum::<f32>();
        down.iter().map(|&(y, weight)| weight * row(y)).sum()
    })
}

/// Mean position of the ink, across and down; nothing where there is none.
pub(super) fn centre_of_mass(pixels: &[u8; PIXELS]) -> Option<(f32, f32)> {
    let (mut mass, mut x, mut y) = (0.0, 0.0, 0.0);
    for (i, &pixel) in pixels.iter().enumerate() {
        let pixel = f32::from(pixel);
        mass += pixel;
        x += pixel * (i % SIDE) as f32;
        y += pixel * (i / SIDE) as f32;
    }
    (mass > 0.0).then(|| (x / mass, y / mass))
}

/// Shifted by whole pixels, so that nothing is blurred again, to where the centre of mass is [`CENTRE`]; less far when
/// ink would be cut off.
fn centred(pixels: &[u8; PIXELS]) -> [u8; PIXELS] {
    let Some((x, y)) = centre_of_mass(pixels) else {
        return *pixels;
    };
    let (left, right) = extent((0..SIDE).map(|x| (0..SIDE).any(|y| pixels[y * SIDE + x] > 0)));
    let (top, bottom) = extent((0..SIDE).map(|y| pixels[y * SIDE..][..SIDE].iter().any(|&v| v > 0)));
    let shift = |centre: f32, first: usize, end: usize| {
        ((CENTRE - centre).round() as isize).clamp(-(first as isize), (SIDE - end) as isize)
    };
    let (dx, dy) = (shift(x, left, right), shift(y, top, bottom));
    let mut moved = [0; PIXELS];
    for row in top..bottom {
        for column in left..right {
            let to = (row as isize + dy) as usize * SIDE + (column as isize + dx) as usize;
            moved[to] = pixels[row * SIDE + column];
        }
    }
    moved
}
