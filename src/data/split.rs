//! Images with their labels, and holding some of them out.

use rand::seq::SliceRandom;

use super::PIXELS;
use crate::{
    Error, Result,
    rng::{self, Purpose},
};

/// Images with their labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// `len() * PIXELS` bytes, image after image, row-major.
    pub images: Vec<u8>,
    /// `len()` bytes, each below [`super::CLASSES`].
    pub labels: Vec<u8>,
}

impl Split {
    /// How many images there are.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The pixels of image `i`, [`PIXELS`] bytes. `None` beyond the last.
    pub fn image(&self, i: usize) -> Option<&[u8]> {
        let start = i.checked_mul(PIXELS)?;
        self.images.get(start..start.checked_add(PIXELS)?)
    }

    fn with_room_for(count: usize) -> Self {
        Split { images: Vec::with_capacity(count * PIXELS), labels: Vec::with_capacity(count) }
    }
}

/// Parts `train` into what is left to train on and `count` images for validation, chosen by `seed` alone.
///
/// Both keep the order of the file. `count` has to be below the number of images: a usage error otherwise.
pub fn hold_out(train: Split, count: usize, seed: u64) -> Result<(Split, Split)> {
    let len = train.len();
    if count >= len {
        return Err(Error::usage(format!(
            "cannot hold out {count} of {len} training images for validation: nothing is left to train on"
        ))
        .hint(format!("give --validation a number below {len}")));
    }
    if count == 0 {
        return Ok((train, Split::with_room_for(0)));
    }
    let mut held = vec![false; len];
    held.iter_mut().take(count).for_each(|held| *held = true);
    held.shuffle(&mut rng::stream(seed, Purpose::Validation));
    let mut kept = Split::with_room_for(len - count);
    let mut validation = Split::with_room_for(count);
    let images = train.images.chunks_exact(PIXELS);
    for ((image, &label), held) in images.zip(&train.labels).zip(held) {
        let part = if held { &mut validation } else { &mut kept };
        part.images.extend_from_slice(image);
        part.labels.push(label);
    }
    Ok((kept, validation))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    /// Every image is filled with its own number, and its label is that number modulo 10.
    fn numbered(count: u8) -> Split {
        Split { images: (0..count).flat_map(|i| [i; PIXELS]).collect(), labels: (0..count).map(|i| i % 10).collect() }
    }

    fn numbers(split: &Split) -> Vec<u8> {
        (0..split.len())
            .map(|i| {
                let image = split.image(i).expect("an image");
                assert!(image.iter().all(|&pixel| pixel == image[0]));
                assert_eq!(split.labels[i], image[0] % 10, "a label left its image");
                image[0]
            })
            .collect()
    }

    #[test]
    fn the_parts_are_disjoint_cover_everything_and_keep_labels_with_images() {
        let (kept, validation) = hold_out(numbered(200), 60, 1).expect("a split");
        let (a, b) = (numbers(&kept), numbers(&validation));
        assert_eq!((a.len(), b.len()), (140, 60));
        assert!(a.is_sorted() && b.is_sorted());
        let mut all = [a, b].concat();
        all.sort_unstable();
        assert_eq!(all, (0..200).collect::<Vec<u8>>());
    }

    #[test]
    fn the_seed_alone_decides() {
        let held = |seed| numbers(&hold_out(numbered(200), 10, seed).expect("a split").1);
        assert_eq!(held(1), held(1));
        assert_ne!(held(1), held(2));
        // Literal values: a run can be repeated years later only while these stay.
        assert_eq!(held(1), [4, 7, 9, 20, 94, 98, 120, 122, 149, 187]);
    }

    #[test]
    fn none_held_out_leaves_all() {
        let (kept, validation) = hold_out(numbered(5), 0, 1).expect("a split");
        assert_eq!((kept, validation.is_empty()), (numbered(5), true));
    }

    #[test]
    fn holding_out_everything_is_a_usage_error() {
        for count in [5, 6, usize::MAX] {
            let error = hold_out(numbered(5), count, 1).expect_err("nothing left");
            assert_eq!((error.kind(), error.exit_code()), (Kind::Usage, 2));
            assert!(error.to_string().contains("of 5 training images"));
        }
        assert!(hold_out(numbered(5), 4, 1).is_ok());
    }

    #[test]
    fn an_image_beyond_the_last_is_none() {
        let split = numbered(2);
        assert_eq!(split.image(1).map(<[u8]>::len), Some(784));
        assert_eq!((split.image(2), split.image(usize::MAX)), (None, None));
    }
}
