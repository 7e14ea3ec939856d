//! What a run says in words: its first line, a line an epoch, and the table at its end. Text in, text out.

use crate::train::metrics::{End, Epoch, Start, Step};

/// What is trained, on what, where.
pub fn start_line(start: &Start) -> String {
    let config = &start.configuration;
    let network = &config.network;
    let layers = format!(" -> SwiGLU {}", network.hidden);
    let layers = match network.depth {
        depth @ 1..=3 => layers.repeat(depth),
        depth => format!("{layers} ({depth} layers)"),
    };
    let validation = match start.valid_images {
        0 => String::new(),
        images => format!(", {} for validation", grouped(images as f64)),
    };
    let resumed = match start.resumed_at {
        Some((epochs, 0)) => format!("\ngoing on after epoch {epochs}"),
        Some((epochs, step)) => format!("\ngoing on after step {step} of epoch {}", epochs + 1),
        None => String::new(),
    };
    format!(
        "{} on {}, {}: 784 -> {}{layers} -> 10, {} parameters; {} images in {} steps an epoch{validation}{resumed}",
        config.swiglu,
        start.device,
        precision_name(start),
        network.width,
        grouped(start.parameters as f64),
        grouped(start.train_images as f64),
        grouped(start.steps_per_epoch as f64),
    )
}

/// How far an epoch is.
pub fn step_line(step: &Step, epochs: u32, steps: u64) -> String {
    format!(
        "epoch {}/{epochs}, step {}/{steps}: loss {}, lr {}",
        step.epoch,
        step.step,
        fixed(f64::from(step.loss), 4),
        fixed(f64::from(step.lr), 5)
    )
}

/// What an epoch came to.
pub fn epoch_line(epoch: &Epoch, epochs: u32) -> String {
    let validation = match (epoch.valid_loss, epoch.valid_accuracy) {
        (Some(loss), Some(accuracy)) => {
            format!(", validation {} and {}", fixed(loss, 4), percent(accuracy))
        }
        _ => String::new(),
    };
    format!(
        "epoch {}/{epochs}: train loss {}{validation}, test loss {}, test accuracy {}; training {} ms, inference {} ms, {} images/s",
        epoch.epoch,
        fixed(epoch.train_loss, 4),
        fixed(epoch.test_loss, 4),
        percent(epoch.test_accuracy),
        fixed(epoch.train_ms, 1),
        fixed(epoch.infer_ms, 1),
        grouped(epoch.images_per_s),
    )
}

/// Every epoch in a row of its own, the numbers under one another; validation has columns when there is any.
pub fn table(epochs: &[Epoch]) -> String {
    let validation = epochs.iter().any(|epoch| epoch.valid_accuracy.is_some());
    let mut rows = vec![header(validation)];
    rows.extend(epochs.iter().map(|epoch| row(epoch, validation)));
    let columns = rows[0].len();
    let widths: Vec<usize> =
        (0..columns).map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}")).collect();
        text.push_str(&cells.join("  "));
        text.push('\n');
    }
    text
}

/// The best epoch and the times of a run, in a line.
pub fn end_line(end: &End) -> String {
    let how = if end.interrupted { "interrupted after" } else { "done:" };
    let epochs = match end.epochs {
        1 => "1 epoch".to_owned(),
        count => format!("{count} epochs"),
    };
    let best = match (end.best_accuracy, end.best_epoch) {
        (Some(accuracy), Some(epoch)) => format!("; best test accuracy {} in epoch {epoch}", percent(accuracy)),
        _ => String::new(),
    };
    // The totals are those of whole epochs: the steps of the one that was interrupted are counted when it ends.
    let (of, then) = if end.interrupted { ("whole epochs: ", ";") } else { ("", ",") };
    format!(
        "{how} {epochs}{best}; {of}training {} s, inference {} s{then} wall clock {} s",
        fixed(end.total_train_ms / 1000.0, 2),
        fixed(end.total_infer_ms / 1000.0, 2),
        fixed(end.total_wall_ms / 1000.0, 2)
    )
}

fn header(validation: bool) -> Vec<String> {
    let mut names = vec!["epoch", "train loss"];
    if validation {
        names.extend(["valid loss", "valid accuracy"]);
    }
    names.extend(["test loss", "test accuracy", "train ms", "inference ms", "images/s"]);
    names.into_iter().map(str::to_owned).collect()
}

fn row(epoch: &Epoch, validation: bool) -> Vec<String> {
    let mut cells = vec![epoch.epoch.to_string(), fixed(epoch.train_loss, 4)];
    if validation {
        cells.push(epoch.valid_loss.map_or("-".to_owned(), |loss| fixed(loss, 4)));
        cells.push(epoch.valid_accuracy.map_or("-".to_owned(), percent));
    }
    cells.extend([
        fixed(epoch.test_loss, 4),
        percent(epoch.test_accuracy),
        fixed(epoch.train_ms, 1),
        fixed(epoch.infer_ms, 1),
        grouped(epoch.images_per_s),
    ]);
    cells
}

fn precision_name(start: &Start) -> String {
    format!("{:?}", start.configuration.precision).to_lowercase()
}

fn percent(share: f64) -> String {
    format!("{} %", fixed(100.0 * share, 2))
}

/// `value` with this many decimals; "nan" and "inf" as words, not as numbers.
fn fixed(value: f64, decimals: usize) -> String {
    if value.is_nan() { "not a number".to_owned() } else { format!("{value:.decimals$}") }
}

/// A whole number with a comma before every three digits.
fn grouped(value: f64) -> String {
    let digits = fixed(value, 0);
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return digits;
    }
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn the_first_line_tells_network_device_and_data() {
        let mut start = testing::start();
        assert_eq!(
            start_line(&start),
            "fused-frozen on cpu, fp32: 784 -> 512 -> SwiGLU 512 -> 10, 931,338 parameters; \
             60,000 images in 938 steps an epoch"
        );
        start.configuration.network.depth = 2;
        (start.valid_images, start.resumed_at) = (5000, Some((2, 300)));
        assert_eq!(
            start_line(&start),
            "fused-frozen on cpu, fp32: 784 -> 512 -> SwiGLU 512 -> SwiGLU 512 -> 10, 931,338 parameters; \
             60,000 images in 938 steps an epoch, 5,000 for validation\ngoing on after step 300 of epoch 3"
        );
    }

    #[test]
    fn lines_of_steps_and_epochs_have_units() {
        let step = Step { epoch: 2, step: 100, loss: 0.25, lr: 0.02 };
        assert_eq!(step_line(&step, 5, 938), "epoch 2/5, step 100/938: loss 0.2500, lr 0.02000");
        let mut epoch = testing::epoch(2, 0.25, 0.125, 0.9375);
        assert_eq!(
            epoch_line(&epoch, 5),
            "epoch 2/5: train loss 0.2500, test loss 0.1250, test accuracy 93.75 %; \
             training 1500.5 ms, inference 40.2 ms, 40,000 images/s"
        );
        (epoch.valid_loss, epoch.valid_accuracy) = (Some(0.5), Some(0.875));
        assert!(epoch_line(&epoch, 5).contains(", validation 0.5000 and 87.50 %, test loss"));
    }

    #[test]
    fn numbers_of_the_table_stand_under_one_another() {
        let mut second = testing::epoch(12, 0.05, f64::NAN, 0.98125);
        (second.train_ms, second.images_per_s) = (99.96, 1_234_567.4);
        assert_eq!(
            table(&[testing::epoch(1, 0.25, 0.125, 0.9375), second]),
            concat!(
                "epoch  train loss     test loss  test accuracy  train ms  inference ms   images/s\n",
                "    1      0.2500        0.1250        93.75 %    1500.5          40.2     40,000\n",
                "   12      0.0500  not a number        98.12 %     100.0          40.2  1,234,567\n",
            )
        );
    }

    #[test]
    fn validation_has_columns_when_there_is_any() {
        let first = testing::epoch(1, 0.25, 0.125, 0.9375);
        let mut second = testing::epoch(2, 0.125, 0.125, 0.9375);
        (second.valid_loss, second.valid_accuracy) = (Some(0.5), Some(0.875));
        assert_eq!(
            table(&[first, second]),
            concat!(
                "epoch  train loss  valid loss  valid accuracy  test loss  test accuracy  train ms  inference ms  images/s\n",
                "    1      0.2500           -               -     0.1250        93.75 %    1500.5          40.2    40,000\n",
                "    2      0.1250      0.5000         87.50 %     0.1250        93.75 %    1500.5          40.2    40,000\n",
            )
        );
    }

    #[test]
    fn the_last_line_names_the_best_epoch_and_an_interrupt() {
        let epochs = [testing::epoch(1, 0.25, 0.125, 0.9375)];
        assert_eq!(
            end_line(&End::of(&epochs, 2345.0, false)),
            "done: 1 epoch; best test accuracy 93.75 % in epoch 1; training 1.50 s, inference 0.04 s, wall clock 2.35 s"
        );
        assert_eq!(
            end_line(&End::of(&[], 100.0, true)),
            "interrupted after 0 epochs; whole epochs: training 0.00 s, inference 0.00 s; wall clock 0.10 s"
        );
    }
}
