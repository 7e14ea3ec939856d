//! Random numbers. Every use has its own stream of one seeded generator, so that nothing depends on the order in which
//! things are drawn, and a position in training is (seed, epoch, step): nothing else has to be saved to go on from it.

use rand::{SeedableRng, rngs::ChaCha8Rng, seq::SliceRandom};

/// What a stream of random numbers is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Initial values of the parameter with this index.
    Init(u32),
    /// The order of the training images in this epoch.
    Shuffle(u32),
    /// Which training images are held out for validation.
    Validation,
    /// Operands of tests and benchmarks.
    Operand(u32),
}

/// The stream for `purpose` under `seed`: the same numbers on every machine and in every release of this program.
pub fn stream(seed: u64, purpose: Purpose) -> ChaCha8Rng {
    let (kind, index) = match purpose {
        Purpose::Init(i) => (1_u64, i),
        Purpose::Shuffle(i) => (2, i),
        Purpose::Validation => (3, 0),
        Purpose::Operand(i) => (4, i),
    };
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(kind << 32 | u64::from(index));
    rng
}

/// The order of `count` training images in `epoch` (from 1).
pub fn permutation(seed: u64, epoch: u32, count: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count as u32).collect();
    order.shuffle(&mut stream(seed, Purpose::Shuffle(epoch)));
    order
}

/// `count` normal numbers (mean 0, standard deviation `std`) by Box and Muller's method.
pub fn normal(seed: u64, purpose: Purpose, count: usize, std: f32) -> Vec<f32> {
    use rand::RngExt;
    let mut rng = stream(seed, purpose);
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        // 1 - u is in (0, 1]: its logarithm is finite.
        let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
        let radius = (-2.0 * u.ln()).sqrt() * f64::from(std);
        let (sin, cos) = (std::f64::consts::TAU * v).sin_cos();
        values.extend([(radius * cos) as f32, (radius * sin) as f32]);
    }
    values.truncate(count);
    values
}

/// `count` uniform numbers in [-`bound`, `bound`).
pub fn uniform(seed: u64, purpose: Purpose, count: usize, bound: f32) -> Vec<f32> {
    use rand::RngExt;
    let mut rng = stream(seed, purpose);
    (0..count).map(|_| (rng.random::<f32>() * 2.0 - 1.0) * bound).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_do_not_move_between_releases() {
        // Literal values: a checkpoint's run can be repeated years later only while these stay.
        assert_eq!(permutation(1, 1, 10), [1, 2, 0, 8, 6, 4, 7, 9, 5, 3]);
        assert_eq!(normal(1, Purpose::Init(0), 2, 1.0), [-0.26753905, -0.44641468]);
        assert_ne!(permutation(1, 1, 10), permutation(1, 2, 10));
        assert_ne!(permutation(1, 1, 10), permutation(2, 1, 10));
    }

    #[test]
    fn normal_has_mean_zero_and_the_deviation_asked_for() {
        let values = normal(7, Purpose::Operand(0), 100_001, 2.0);
        assert_eq!(values.len(), 100_001);
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / 100_001.0;
        let var = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / 100_001.0;
        assert!(mean.abs() < 0.03, "{mean}");
        assert!((var - 4.0).abs() < 0.1, "{var}");
    }
}
