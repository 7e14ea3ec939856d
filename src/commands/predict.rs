//! `predict`: which digit a picture shows, or a test image of the data set.

use std::borrow::Cow;

use super::{
    load, out,
    predict_output::{self, Prediction, Source, Style},
};
use crate::{
    Error, Result,
    cli::{self, PredictArgs},
    data::{self, PIXELS, Split, picture},
    device::{Device, cpu::ops::argmax},
    swiglu::Pass,
    train::run_dir,
};

/// An image to look at.
struct Image {
    source: Source,
    pixels: [u8; PIXELS],
    label: Option<u8>,
    notes: Vec<String>,
}

/// Predicts and prints. A picture that cannot be read is told of; the others are done all the same.
///
/// # Errors
/// When there is no checkpoint, or a picture cannot be read.
pub fn run(args: PredictArgs) -> Result<()> {
    let (device, _) = Device::open(&args.device.device, args.device.threads.map(|n| n as usize))?;
    let path = match &args.checkpoint {
        Some(path) => path.clone(),
        None => run_dir::newest(std::path::Path::new(run_dir::RUNS))?,
    };
    let mut model = load::network(&path, None, args.precision, &device)?.model;

    let mut failure: Option<Error> = None;
    let mut images = test_images(&args)?;
    for path in &args.pictures {
        match picture::read(path, polarity(args.light_on_dark)) {
            Ok(digit) => {
                let source = Source::Picture(path.clone());
                images.push(Image { source, pixels: digit.pixels, label: None, notes: digit.notes });
            }
            Err(error) => {
                if let Some(earlier) = failure.replace(error) {
                    super::print_error(&earlier);
                }
            }
        }
    }

    if !images.is_empty() {
        let split = Split { images: images.iter().flat_map(|i| i.pixels).collect(), labels: vec![0; images.len()] };
        let split = device.images(Cow::Owned(split))?;
        let batch = images.len().min(256);
        let mut acts = model.activations(batch, Pass::Inference)?;
        let probabilities = model.probabilities(&split, &mut acts, batch)?;
        for (image, probabilities) in images.into_iter().zip(probabilities) {
            let Image { source, pixels, label, notes } = image;
            let digit = argmax(&probabilities) as u8;
            let prediction = Prediction { source, digit, probabilities, pixels, label, notes };
            if args.json {
                out::print_line(&predict_output::json(&prediction).to_string())?;
            } else {
                out::print_line(&predict_output::text(&prediction, Style::from_env()))?;
            }
        }
    }
    failure.map_or(Ok(()), Err)
}

fn test_images(args: &PredictArgs) -> Result<Vec<Image>> {
    if args.index.is_empty() {
        return Ok(Vec::new());
    }
    let test = data::load(&args.data)?.test;
    let image = |&index: &u32| {
        let found = test.image(index as usize).and_then(|pixels| <[u8; PIXELS]>::try_from(pixels).ok());
        let (Some(pixels), Some(&label)) = (found, test.labels.get(index as usize)) else {
            return Err(Error::usage(format!("--index {index}: there are {} test images", test.len()))
                .hint(format!("give a number from 0 to {}", test.len() - 1)));
        };
        Ok(Image { source: Source::TestImage(index), pixels, label: Some(label), notes: Vec::new() })
    };
    args.index.iter().map(image).collect()
}

fn polarity(asked: cli::Polarity) -> picture::Polarity {
    match asked {
        cli::Polarity::Auto => picture::Polarity::Auto,
        cli::Polarity::Yes => picture::Polarity::LightOnDark,
        cli::Polarity::No => picture::Polarity::DarkOnLight,
    }
}
