//! A picture of one digit, as anyone would take or draw it, in the form of MNIST's images.
//!
//! | step | file |
//! |---|---|
//! | bytes -> brightness and opacity of each pixel | `decode` |
//! | brightness -> ink: which pixels are the digit, and how strongly | `ink` |
//! | ink -> 28 x 28: longer side 20 pixels, centre of mass in the middle | `place` |
//!
//! MNIST itself was made by the last step, from scanned forms that were black and white already.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use super::{PIXELS, SIDE};
use crate::{Error, Kind, Result};

mod decode;
mod ink;
mod place;

pub use ink::Polarity;

/// Bytes read of a file at most: a photograph has a tenth of it, and an endless device must end.
const MAX_BYTES: u64 = 128 << 20;

/// One image in MNIST's form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digit {
    /// Row-major; 0 is the ground, 255 full ink.
    pub pixels: [u8; PIXELS],
    /// What was done to the picture that its owner may want to know, in words.
    pub notes: Vec<String>,
}

/// Reads the PNG, JPEG or PGM file `path`, of any size, into MNIST's form. What the file is shows in its content, whatever
/// its name says.
///
/// # Errors
/// [`Kind::Io`] when the file cannot be read; [`Kind::Data`] when it is no such picture, is damaged or too large, or shows
/// no ink.
pub fn read(path: &Path, polarity: Polarity) -> Result<Digit> {
    let file = File::open(path).map_err(|e| cannot_open(path, e))?;
    // Opening a directory succeeds on Unix, and reading it fails with a message that helps nobody.
    if file.metadata().is_ok_and(|meta| meta.is_dir()) {
        return Err(Error::new(Kind::Data, format!("cannot read {}: it is a directory", path.display()))
            .hint("name the picture files in it, such as DIR/*.png"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(damaged(path, "it is larger than 128 MiB").hint("scale the picture down first"));
    }
    from_bytes(&bytes, path, polarity)
}

/// As [`read`], of a file's content; `name` is for messages alone.
///
/// # Errors
/// [`Kind::Data`], as [`read`].
pub fn from_bytes(bytes: &[u8], name: &Path, polarity: Polarity) -> Result<Digit> {
    let scene = decode::scene(bytes, name)?;
    if scene.is_mnist_sized() && polarity == Polarity::LightOnDark {
        return as_it_is(&scene, name);
    }
    let ink = ink::find(&scene, polarity).map_err(|why| {
        damaged(name, &format!("no ink found: {why}")).hint(
            "give a picture of one digit that stands out from an even ground, with some ground around it; \
             --light-on-dark yes|no says which of the two is ink",
        )
    })?;
    if scene.is_mnist_sized() && ink.light {
        return as_it_is(&scene, name);
    }
    let mut notes = vec![ink.describe()];
    let (pixels, widened) = place::place(&ink);
    if widened {
        notes.push("its lines were widened to those of MNIST".to_string());
    }
    Ok(Digit { pixels, notes })
}

/// A picture of MNIST's size and polarity: it is in MNIST's form, or what its maker wants to try instead.
fn as_it_is(scene: &decode::Scene, name: &Path) -> Result<Digit> {
    let pixels = scene.as_it_is();
    let Some((x, y)) = place::centre_of_mass(&pixels) else {
        return Err(damaged(name, "no ink found: it is black")
            .hint("give a picture of one digit that stands out from its ground"));
    };
    let mut notes = vec!["28 x 28 and light on dark: taken as it is".to_string()];
    if (x - place::CENTRE).hypot(y - place::CENTRE) > 2.5 {
        notes.push("its ink is off the centre, where MNIST has it".to_string());
    }
    Ok(Digit { pixels, notes })
}

fn cannot_open(path: &Path, error: io::Error) -> Error {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => "check the name of the picture",
        io::ErrorKind::PermissionDenied => "check that you may read it",
        _ => "check that it is a file that can be read",
    };
    Error::io("open", path, error).hint(hint)
}

fn damaged(path: &Path, why: &str) -> Error {
    Error::new(Kind::Data, format!("cannot use {} as a picture: {why}", path.display()))
}

/// Brightness in [0, 1] of a picture, row-major.
#[derive(Clone, Debug)]
struct Grey {
    width: usize,
    height: usize,
    values: Vec<f32>,
}

impl Grey {
    /// The outermost ring of pixels, as (x, y).
    fn border(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (w, h) = (self.width, self.height);
        let rows = (0..w).flat_map(move |x| [(x, 0), (x, h - 1)]);
        let columns = (1..h.saturating_sub(1)).flat_map(move |y| [(0, y), (w - 1, y)]);
        rows.chain(columns)
    }
}
