//! Which pixels of a picture are ink, and how strongly.
//!
//! The ground is what most of the border shows: one brightness, or a slope of it where light fell from one side. Ink is
//! what differs from the ground to one side (darker, or lighter), is told from it by Otsu's threshold, stands out of the
//! noise of the border, and is no speck.

use super::{Grey, decode::Scene};

/// The least difference from the ground, of the whole range from black to white, that counts as ink.
const MIN_CONTRAST: f32 = 1.0 / 16.0;

/// Whether the ink of a picture is lighter or darker than its ground.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Polarity {
    /// Ink is what differs from the border, lighter or darker.
    #[default]
    Auto,
    /// Light ink on a dark ground, as MNIST's.
    LightOnDark,
    /// Dark ink on a light ground, as on paper.
    DarkOnLight,
}

/// The ink of a picture.
#[derive(Debug)]
pub(super) struct Ink {
    /// 0 where there is none, 1 for full ink.
    pub(super) map: Grey,
    /// Whether it is lighter than the ground.
    pub(super) light: bool,
    sloped: bool,
}

impl Ink {
    /// How the picture was read, in words.
    pub(super) fn describe(&self) -> String {
        let ink = if self.light { "light ink on a dark ground" } else { "dark ink on a light ground" };
        let slope = if self.sloped { ", unevenly lit" } else { "" };
        format!("read as {ink}{slope}")
    }
}

/// The ink of `scene`, or why there is none.
pub(super) fn find(scene: &Scene, polarity: Polarity) -> Result<Ink, String> {
    if !scene.is_transparent() {
        return on(&scene.over(1.0), polarity);
    }
    match polarity {
        Polarity::LightOnDark => on(&scene.over(0.0), polarity),
        Polarity::DarkOnLight => on(&scene.over(1.0), polarity),
        // A transparent picture is drawn for paper; what does not show there is white ink, drawn for a black ground.
        Polarity::Auto => on(&scene.over(1.0), polarity).or_else(|_| on(&scene.over(0.0), polarity)),
    }
}

fn on(grey: &Grey, polarity: Polarity) -> Result<Ink, String> {
    if grey.width.min(grey.height) < 3 {
        return Err(format!("{} x {} pixels show no digit", grey.width, grey.height));
    }
    let ground = Ground::of(grey);
    let mut map = grey.clone();
    for (i, value) in map.values.iter_mut().enumerate() {
        *value -= ground.at(i % grey.width, i / grey.width);
    }
    let light = match polarity {
        Polarity::LightOnDark => true,
        Polarity::DarkOnLight => false,
        // Squares, because ink differs more than noise does.
        Polarity::Auto => map.values.iter().map(|v| f64::from(v * v.abs())).sum::<f64>() > 0.0,
    };
    for value in &mut map.values {
        *value = if light { *value } else { -*value }.max(0.0);
    }
    // 1.48 makes a standard deviation of a median deviation.
    let noise = 1.48 * median(grey.border().map(|(x, y)| (grey.values[y * grey.width + x] - ground.at(x, y)).abs()));
    let threshold = otsu(&map.values);
    let full = full_ink(&map.values, threshold);
    if full < MIN_CONTRAST {
        return Err("it has no contrast".to_string());
    }
    if full < 5.0 * noise {
        return Err("its border is as uneven as its inside".to_string());
    }
    let floor = (3.0 * noise).min(threshold);
    keep_strokes(&mut map, floor, threshold.max(4.0 * noise));
    for value in &mut map.values {
        *value = ((*value - floor) / (full - floor)).clamp(0.0, 1.0);
    }
    if map.values.iter().all(|&v| v == 0.0) {
        return Err("nothing stands out from the ground".to_string());
    }
    Ok(Ink { map, light, sloped: ground.is_sloped() })
}

/// The brightness of the ground: `level + slope . (x, y)`.
struct Ground {
    level: f32,
    slope: (f32, f32),
}

impl Ground {
    fn of(grey: &Grey) -> Ground {
        let flat =
            Ground { level: median(grey.border().map(|(x, y)| grey.values[y * grey.width + x])), slope: (0.0, 0.0) };
        let sloped = Ground::plane(grey, &flat);
        // Ink that fills one edge also looks like a slope, but a poor one.
        if sloped.misfit(grey) < 0.5 * flat.misfit(grey) { sloped } else { flat }
    }

    fn at(&self, x: usize, y: usize) -> f32 {
        self.level + self.slope.0 * x as f32 + self.slope.1 * y as f32
    }

    fn is_sloped(&self) -> bool {
        self.slope != (0.0, 0.0)
    }

    fn misfit(&self, grey: &Grey) -> f32 {
        grey.border().map(|(x, y)| (grey.values[y * grey.width + x] - self.at(x, y)).abs()).sum()
    }

    /// The plane through the border with the least absolute deviations, which ink at a part of the border hardly moves:
    /// least squares, weighted again and again by one over the deviation.
    fn plane(grey: &Grey, start: &Ground) -> Ground {
        let mut best = Ground { ..*start };
        for _ in 0..12 {
            // Normal equations of (1, x, y), augmented by the right-hand side.
            let mut m = [[0.0_f64; 4]; 3];
            for (x, y) in grey.border() {
                let value = grey.values[y * grey.width + x];
                let weight = 1.0 / f64::from((value - best.at(x, y)).abs().max(1e-3));
                let row = [1.0, x as f64, y as f64, f64::from(value)];
                for i in 0..3 {
                    for j in 0..4 {
                        m[i][j] += weight * row[i] * row[j];
                    }
                }
            }
            let Some([level, dx, dy]) = solve(m) else {
                break;
            };
            best = Ground { level: level as f32, slope: (dx as f32, dy as f32) };
        }
        best
    }
}

/// Gauss-Jordan elimination with pivoting; nothing when the matrix is singular.
fn solve(mut m: [[f64; 4]; 3]) -> Option<[f64; 3]> {
    for i in 0..3 {
        let pivot = (i..3).max_by(|&a, &b| m[a][i].abs().total_cmp(&m[b][i].abs()))?;
        m.swap(i, pivot);
        if m[i][i].abs() < 1e-9 {
            return None;
        }
        let pivot_row = m[i];
        for r in (0..3).filter(|&r| r != i) {
            let factor = m[r][i] / m[i][i];
            for (value, above) in m[r].iter_mut().zip(pivot_row) {
                *value -= factor * above;
            }
        }
    }
    Some([0, 1, 2].map(|i| m[i][3] / m[i][i]))
}

/// The middle value; 0 of nothing.
fn median(values: impl Iterator<Item = f32>) -> f32 {
    let mut values: Vec<f32> = values.collect();
    if values.is_empty() {
        return 0.0;
    }
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f32::total_cmp).1
}

/// Otsu's threshold: the one that sets the means of the two sides furthest apart, weighted by their sizes.
fn otsu(values: &[f32]) -> f32 {
    const BINS: usize = 256;
    let mut histogram = [0.0_f64; BINS];
    for &value in values {
        histogram[((value * BINS as f32) as usize).min(BINS - 1)] += 1.0;
    }
    let total: f64 = values.len() as f64;
    let sum: f64 = (0..BINS).map(|i| i as f64 * histogram[i]).sum();
    let (mut below, mut sum_below, mut best, mut first, mut last) = (0.0, 0.0, -1.0, 0, 0);
    for (i, count) in histogram.iter().enumerate().take(BINS - 1) {
        below += count;
        sum_below += i as f64 * count;
        let above = total - below;
        if below == 0.0 || above == 0.0 {
            continue;
        }
        let apart = sum_below / below - (sum - sum_below) / above;
        let between = below * above * apart * apart;
        if between > best {
            (best, first, last) = (between, i, i);
        } else if between == best {
            last = i;
        }
    }
    // Where nothing lies between ground and ink, all thresholds there are equal: the middle one is the safest.
    ((first + last) as f32 / 2.0 + 1.0) / BINS as f32
}

/// What counts as full ink: the upper quartile of what is above the threshold, so that a few glints decide nothing.
fn full_ink(values: &[f32], threshold: f32) -> f32 {
    let mut ink: Vec<f32> = values.iter().copied().filter(|&v| v >= threshold).collect();
    if ink.is_empty() {
        return 0.0;
    }
    let at = ink.len() * 3 / 4;
    *ink.select_nth_unstable_by(at, f32::total_cmp).1
}

/// Clears what is not a stroke: a stroke is connected pixels above `floor`, some of them above `strong`, and has at least
/// a thirtieth of the strong pixels that the largest has (the dot of a pen does not move the digit's centre).
fn keep_strokes(map: &mut Grey, floor: f32, strong: f32) {
    let (w, h) = (map.width, map.height);
    let mut label = vec![0_u32; w * h];
    let mut sizes = vec![0_usize];
    let mut stack = Vec::new();
    for start in 0..w * h {
        if label[start] != 0 || map.values[start] < strong {
            continue;
        }
        let name = sizes.len() as u32;
        sizes.push(0);
        label[start] = name;
        stack.push(start);
        while let Some(at) = stack.pop() {
            sizes[name as usize] += usize::from(map.values[at] >= strong);
            let (x, y) = (at % w, at / w);
            for ny in y.saturating_sub(1)..=(y + 1).min(h - 1) {
                for nx in x.saturating_sub(1)..=(x + 1).min(w - 1) {
                    let next = ny * w + nx;
                    if label[next] == 0 && map.values[next] > floor {
                        label[next] = name;
                        stack.push(next);
                    }
                }
            }
        }
    }
    let largest = sizes.iter().copied().max().unwrap_or(0);
    for (value, name) in map.values.iter_mut().zip(label) {
        if name == 0 || sizes[name as usize] * 30 < largest {
            *value = 0.0;
        }
    }
}
