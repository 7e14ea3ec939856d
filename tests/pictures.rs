//! Pictures of digits, in every form that people have them, come out in MNIST's form; what is no such picture is refused
//! in words.

#![allow(clippy::unwrap_used)] // A test that cannot go on has failed.

use std::{fs, io::Cursor, io::Read, path::Path, path::PathBuf};

use image::{DynamicImage, GrayImage, ImageFormat, Luma, LumaA, Rgb, RgbImage, Rgba};
use mnist_swiglu::{
    Kind,
    data::picture::{self, Digit, Polarity},
};
use proptest::prelude::*;

/// Ink, in [0, 1], of a shape at (x, y).
type Shape = fn(f32, f32) -> f32;

/// A vertical bar, 24 wide and 120 high, its centre at (90, 110).
fn one(x: f32, y: f32) -> f32 {
    f32::from((x - 90.0).abs() < 12.0 && (y - 110.0).abs() < 60.0)
}

/// A ring of radii 50 and 34 around (200, 70), thicker at the upper left: a symmetric one could as well be a pixel further.
fn zero(x: f32, y: f32) -> f32 {
    f32::from((x - 200.0).hypot(y - 70.0) < 50.0 && (x - 204.0).hypot(y - 73.0) >= 34.0)
}

/// 300 x 200, `ink` on `ground`, four samples a pixel.
fn draw(shape: Shape, ink: f32, ground: f32) -> GrayImage {
    GrayImage::from_fn(300, 200, |x, y| {
        let samples = [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)];
        let covered: f32 = samples.iter().map(|(dx, dy)| shape(x as f32 + dx, y as f32 + dy)).sum();
        Luma([(ground + (ink - ground) * covered / 4.0).round() as u8])
    })
}

fn encoded(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn png(picture: impl Into<DynamicImage>) -> Vec<u8> {
    encoded(picture, ImageFormat::Png)
}

fn digit(bytes: &[u8]) -> Digit {
    picture::from_bytes(bytes, Path::new("test.png"), Polarity::Auto).unwrap()
}

/// The message, and the hint, of the refusal of `bytes`.
fn refusal(bytes: &[u8]) -> String {
    let error = picture::from_bytes(bytes, Path::new("test.png"), Polarity::Auto).unwrap_err();
    assert_eq!(error.kind(), Kind::Data);
    assert!(error.to_string().contains("test.png"), "{error}");
    format!("{error}; {}", error.hint_text().expect("a hint"))
}

fn centre_of_mass(pixels: &[u8; 784]) -> (f32, f32) {
    let mass: f32 = pixels.iter().map(|&p| f32::from(p)).sum();
    let along = |place: fn(usize) -> usize| {
        pixels.iter().enumerate().map(|(i, &p)| f32::from(p) * place(i) as f32).sum::<f32>() / mass
    };
    (along(|i| i % 28), along(|i| i / 28))
}

/// Columns and rows from the first to the last with a pixel of at least `least`.
fn extent(pixels: &[u8; 784], least: u8) -> (usize, usize) {
    let span = |inked: &dyn Fn(usize) -> bool| {
        let inked: Vec<usize> = (0..28).filter(|&i| inked(i)).collect();
        inked.last().unwrap() - inked[0] + 1
    };
    (span(&|x| (0..28).any(|y| pixels[y * 28 + x] >= least)), span(&|y| (0..28).any(|x| pixels[y * 28 + x] >= least)))
}

/// The largest difference of a pixel.
fn difference(a: &[u8; 784], b: &[u8; 784]) -> u8 {
    a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

fn correlation(a: &[u8], b: &[u8]) -> f64 {
    let mean = |v: &[u8]| v.iter().map(|&p| f64::from(p)).sum::<f64>() / v.len() as f64;
    let (ma, mb) = (mean(a), mean(b));
    let pairs = || a.iter().zip(b).map(|(&p, &q)| (f64::from(p) - ma, f64::from(q) - mb));
    let (ab, aa, bb) = pairs().fold((0.0, 0.0, 0.0), |s, (p, q)| (s.0 + p * q, s.1 + p * p, s.2 + q * q));
    ab / (aa * bb).sqrt()
}

/// The first `count` test images of MNIST.
fn mnist(count: usize) -> Vec<[u8; 784]> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/t10k-images-idx3-ubyte.gz");
    let mut bytes = vec![0; 16 + count * 784];
    flate2::read::GzDecoder::new(fs::File::open(path).unwrap()).read_exact(&mut bytes).unwrap();
    bytes[16..].chunks(784).map(|image| image.try_into().unwrap()).collect()
}

/// `image` ten times larger, dark on light, off the centre of a picture of 500 x 400.
fn on_paper(image: &[u8; 784]) -> GrayImage {
    GrayImage::from_fn(500, 400, |x, y| {
        let (x, y) = ((x as usize).wrapping_sub(183) / 10, (y as usize).wrapping_sub(41) / 10);
        let ink = if x < 28 && y < 28 { image[y * 28 + x] } else { 0 };
        Luma([255 - ink])
    })
}

fn temporary(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pictures");
    fs::create_dir_all(&dir).unwrap();
    dir.join(name)
}

#[test]
fn a_bar_on_paper_becomes_a_one_of_twenty_pixels_in_the_middle() {
    let pixels = digit(&png(draw(one, 0.0, 255.0))).pixels;
    // 24 of 120 pixels are 4 of 20.
    assert_eq!(extent(&pixels, 1), (4, 20));
    let (x, y) = centre_of_mass(&pixels);
    assert!((x - 14.0).abs() <= 0.5 && (y - 14.0).abs() <= 0.5, "{x} {y}");
    assert_eq!(pixels.iter().filter(|&&p| p == 255).count(), 80);
    assert_eq!(pixels.iter().filter(|&&p| p == 0).count(), 784 - 80);
}

#[test]
fn a_ring_on_paper_becomes_a_zero_with_a_hole() {
    let pixels = digit(&png(draw(zero, 0.0, 255.0))).pixels;
    assert_eq!(extent(&pixels, 128), (20, 20));
    let (x, y) = centre_of_mass(&pixels);
    assert!((x - 14.0).abs() <= 0.5 && (y - 14.0).abs() <= 0.5, "{x} {y}");
    let hole = pixels[13 * 28 + 13];
    assert_eq!((pixels[0], hole, pixels[27], pixels[783]), (0, 0, 0, 0));
    assert_eq!(pixels.iter().max(), Some(&255));
}

#[test]
fn ink_and_ground_may_be_any_two_brightnesses_either_way_round() {
    let expected = digit(&png(draw(zero, 0.0, 255.0))).pixels;
    for (ink, ground) in [(255.0, 0.0), (40.0, 220.0), (220.0, 40.0), (0.0, 100.0), (100.0, 130.0)] {
        let pixels = digit(&png(draw(zero, ink, ground))).pixels;
        let worst = difference(&pixels, &expected);
        // Rounding to whole brightnesses: 30 steps between ink and ground cannot show 255.
        let allowed = if (ink - ground).abs() > 100.0 { 2 } else { 8 };
        assert!(worst <= allowed, "ink {ink} on {ground}: {worst}");
    }
}

#[test]
fn a_stated_polarity_is_obeyed() {
    let bytes = png(draw(one, 0.0, 255.0));
    let read = |polarity| picture::from_bytes(&bytes, Path::new("test.png"), polarity);
    assert_eq!(read(Polarity::DarkOnLight).unwrap(), read(Polarity::Auto).unwrap());
    // Nothing in the picture is lighter than its ground.
    assert!(read(Polarity::LightOnDark).is_err());
}

#[test]
fn a_photograph_with_noise_and_a_shadow_has_a_black_ground() {
    let clean = draw(zero, 60.0, 200.0);
    let mut state = 1_u32;
    let photo = RgbImage::from_fn(300, 200, |x, y| {
        let shade = 40.0 * x as f32 / 300.0 + 20.0 * y as f32 / 200.0;
        Rgb(std::array::from_fn(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let noise = (state >> 24) as f32 / 255.0 * 24.0 - 12.0;
            (f32::from(clean[(x, y)].0[0]) - shade + noise) as u8
        }))
    });
    let expected = digit(&png(clean)).pixels;
    for bytes in [png(photo.clone()), encoded(photo, ImageFormat::Jpeg)] {
        let read = digit(&bytes);
        assert_eq!(read.notes, ["read as dark ink on a light ground, unevenly lit"]);
        let same = correlation(&read.pixels, &expected);
        assert!(same > 0.99, "{same}");
        let (x, y) = extent(&read.pixels, 1);
        assert!(x <= 22 && y <= 22, "ink of {x} x {y} pixels");
    }
}

#[test]
fn a_speck_of_dust_does_not_move_the_digit() {
    let expected = digit(&png(draw(one, 0.0, 255.0)));
    let mut dusty = draw(one, 0.0, 255.0);
    for (x, y) in [(280, 20), (281, 20), (280, 21), (5, 190)] {
        dusty.put_pixel(x, y, Luma([0]));
    }
    assert_eq!(digit(&png(dusty)), expected);
}

#[test]
fn a_fine_pen_line_is_widened_to_the_lines_of_mnist() {
    fn hair(x: f32, y: f32) -> f32 {
        f32::from(((x - 200.0).hypot(y - 70.0) - 50.0).abs() < 1.0)
    }
    let read = digit(&png(draw(hair, 0.0, 255.0)));
    assert!(read.notes.iter().any(|note| note.contains("widened")), "{:?}", read.notes);
    assert_eq!(read.pixels.iter().max(), Some(&255));
    // A ring of radius 10 and width 2 has 126 pixels of full ink; a line of width 0.4 would have 25.
    let ink: f32 = read.pixels.iter().map(|&p| f32::from(p) / 255.0).sum();
    assert!((80.0..170.0).contains(&ink), "{ink}");
}

#[test]
fn a_small_picture_is_enlarged_smoothly() {
    let icon =
        GrayImage::from_fn(9, 9, |x, y| Luma([if (3..5).contains(&x) && (1..7).contains(&y) { 0 } else { 255 }]));
    let pixels = digit(&png(icon)).pixels;
    let (x, y) = extent(&pixels, 128);
    assert!((6..=8).contains(&x) && (19..=21).contains(&y), "{x} x {y}");
}

#[test]
fn an_image_of_mnist_comes_out_as_it_is() {
    for image in mnist(100) {
        let read = digit(&png(GrayImage::from_vec(28, 28, image.to_vec()).unwrap()));
        assert_eq!(read.pixels, image);
        assert_eq!(read.notes[0], "28 x 28 and light on dark: taken as it is");
    }
}

#[test]
fn images_of_mnist_survive_being_enlarged_inverted_and_moved() {
    let mut worst = (1.0, 0);
    for (i, image) in mnist(200).iter().enumerate() {
        let path = temporary(&format!("{i}.png"));
        on_paper(image).save(&path).unwrap();
        let read = picture::read(&path, Polarity::Auto).unwrap();
        let same = correlation(&read.pixels, image);
        if same < worst.0 {
            worst = (same, i);
        }
    }
    assert!(worst.0 > 0.95, "test image {} correlates {} with itself", worst.1, worst.0);
}

#[test]
fn every_kind_of_file_gives_the_same_digit() {
    let grey = draw(zero, 0.0, 255.0);
    let expected = digit(&png(grey.clone())).pixels;
    let picture = DynamicImage::from(grey);
    let same = |what: &str, bytes: &[u8], allowed: u8| {
        let pixels = digit(bytes).pixels;
        let worst = difference(&pixels, &expected);
        assert!(worst <= allowed, "{what}: {worst}");
    };
    same("RGB", &png(picture.to_rgb8()), 1);
    same("grey of 16 bits", &png(picture.to_luma16()), 1);
    same("RGB of 16 bits", &png(picture.to_rgb16()), 1);
    same("PGM", &encoded(picture.to_luma8(), ImageFormat::Pnm), 0);
    same("JPEG", &encoded(picture.to_luma8(), ImageFormat::Jpeg), 20);
    let header = b"P2\n300 200\n255\n".to_vec();
    let plain = picture.to_luma8().pixels().map(|p| format!("{}\n", p.0[0])).collect::<String>();
    same("plain PGM", &[header, plain.into_bytes()].concat(), 0);
}

#[test]
fn ink_on_a_transparent_ground_is_found_in_black_and_in_white() {
    let shape = draw(zero, 255.0, 0.0);
    let expected = digit(&png(draw(zero, 0.0, 255.0))).pixels;
    for ink in [0, 255] {
        let same = |bytes: &[u8]| {
            let worst = difference(&digit(bytes).pixels, &expected);
            assert!(worst <= 1, "ink {ink}: {worst}");
        };
        let grey = image::ImageBuffer::from_fn(300, 200, |x, y| LumaA([ink, shape[(x, y)].0[0]]));
        same(&png(grey));
        // What is transparent has a colour too, which nobody sees.
        let rgba = image::ImageBuffer::from_fn(300, 200, |x, y| {
            let alpha = shape[(x, y)].0[0];
            Rgba(if alpha == 0 { [200, 30, 90, 0] } else { [ink, ink, ink, alpha] })
        });
        same(&png(rgba));
    }
}

#[test]
fn a_huge_picture_is_averaged_down() {
    let small = draw(zero, 0.0, 255.0);
    let large = GrayImage::from_fn(6000, 4000, |x, y| small[(x / 20, y / 20)]);
    let same = correlation(&digit(&encoded(large, ImageFormat::Pnm)).pixels, &digit(&png(small)).pixels);
    assert!(same > 0.99, "{same}");
}

#[test]
fn content_decides_and_not_the_name() {
    let path = temporary("really-a-png.jpg");
    fs::write(&path, png(draw(one, 0.0, 255.0))).unwrap();
    assert_eq!(picture::read(&path, Polarity::Auto).unwrap(), digit(&png(draw(one, 0.0, 255.0))));
}

#[test]
fn pictures_without_ink_are_refused() {
    for (what, picture) in [
        ("white", GrayImage::from_pixel(64, 64, Luma([255]))),
        ("black", GrayImage::from_pixel(64, 64, Luma([0]))),
        ("black of MNIST's size", GrayImage::from_pixel(28, 28, Luma([0]))),
        ("white of MNIST's size", GrayImage::from_pixel(28, 28, Luma([255]))),
        ("faint", draw(one, 200.0, 206.0)),
        ("one pixel", GrayImage::from_pixel(1, 1, Luma([9]))),
        ("one row", GrayImage::from_fn(50, 1, |x, _| Luma([x as u8 * 5]))),
        ("a slope", GrayImage::from_fn(64, 64, |x, y| Luma([(x + y * 2) as u8]))),
    ] {
        let text = refusal(&png(picture));
        assert!(text.contains("no ink found"), "{what}: {text}");
    }
    let mut state = 7_u32;
    let noise = GrayImage::from_fn(64, 64, |_, _| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Luma([(state >> 24) as u8])
    });
    assert!(refusal(&png(noise)).contains("no ink found"));
}

#[test]
fn what_is_no_picture_is_refused_with_its_reason() {
    let good = png(draw(one, 0.0, 255.0));
    assert!(refusal(b"").contains("the file is empty"));
    assert!(refusal(b"hello, this is text").contains("it is not a PNG, JPEG or PGM file"));
    assert!(refusal(b"GIF89a............").contains("it is a GIF file; convert it to PNG"));
    for cut in [9, 30, 60, good.len() / 2] {
        assert!(refusal(&good[..cut]).contains("damaged or cut short"), "cut to {cut}");
    }
    // Sixty thousand pixels a side: refused from the header, before 3.6 GB are allocated.
    assert!(refusal(b"P5 60000 60000 255\n").contains("too large"));
    assert!(refusal(b"P5 30000 30000 255\n").contains("too large"));
    let mut bomb = good;
    bomb[16..24].copy_from_slice(&[0, 0, 0xEA, 0x60, 0, 0, 0xEA, 0x60]);
    let crc = crc32(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&crc.to_be_bytes());
    assert!(refusal(&bomb).contains("too large"));
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let missing = picture::read(Path::new("no-such.png"), Polarity::Auto).unwrap_err();
    assert_eq!((missing.kind(), missing.to_string().as_str()), (Kind::Io, "cannot open no-such.png"));
    assert_eq!(missing.hint_text(), Some("check the name of the picture"));
    let directory = picture::read(Path::new("src"), Polarity::Auto).unwrap_err();
    assert_eq!(directory.to_string(), "cannot read src: it is a directory");
}

/// The checksum of PNG's chunks.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0xEDB8_8320 } else { c >> 1 })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = picture::from_bytes(&bytes, Path::new("fuzz"), Polarity::Auto);
    }

    #[test]
    fn no_change_of_a_file_makes_it_panic(
        format in prop::sample::select(vec![ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Pnm]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        header in any::<bool>(),
    ) {
        let mut bytes = encoded(image::imageops::thumbnail(&draw(zero, 0.0, 255.0), 60, 40), format);
        let reach = if header { bytes.len().min(40) } else { bytes.len() };
        for (at, value) in changes {
            bytes[at.index(reach)] = value;
        }
        let _ = picture::from_bytes(&bytes, Path::new("fuzz"), Polarity::Auto);
    }

    #[test]
    fn no_header_of_a_pgm_makes_it_panic(kind in 1..8_u8, w in any::<u32>(), h in 0..40_000_u32, max in any::<u32>(), body in prop::collection::vec(any::<u8>(), 0..64)) {
        let bytes = [format!("P{kind}\n{w} {h}\n{max}\n").into_bytes(), body].concat();
        let _ = picture::from_bytes(&bytes, Path::new("fuzz"), Polarity::Auto);
    }

    #[test]
    fn any_small_picture_gives_ink_or_a_reason(w in 1..12_u32, h in 1..12_u32, seed in prop::collection::vec(any::<u8>(), 144)) {
        let picture = GrayImage::from_fn(w, h, |x, y| Luma([seed[(y * 12 + x) as usize]]));
        for polarity in [Polarity::Auto, Polarity::LightOnDark, Polarity::DarkOnLight] {
            match picture::from_bytes(&png(picture.clone()), Path::new("fuzz"), polarity) {
                Ok(digit) => prop_assert!(digit.pixels.contains(&255)),
                Err(error) => prop_assert!(error.hint_text().is_some()),
            }
        }
    }
}
