//! The reference's gradients against central differences of its own forward: the formulas are right before anything is
//! compared with them.

use mnist_swiglu::{
    measure::check::training::TrainingCase,
    swiglu::reference::{Dims, Operands, sigmoid, swiglu},
};

/// L = sum of dz * z in f64, for perturbed operands in f64.
fn objective(dims: Dims, x: &[f64], wf: &[f64], dz: &[f64]) -> f64 {
    let Dims { batch, inputs, hidden } = dims;
    let mut sum = 0.0;
    for b in 0..batch {
        for h in 0..hidden {
            let dot = |row: usize| (0..inputs).map(|d| x[b * inputs + d] * wf[row * inputs + d]).sum::<f64>();
            let (g, u) = (dot(h), dot(hidden + h));
            sum += dz[b * hidden + h] * g * sigmoid(g) * u;
        }
    }
    sum
}

#[test]
fn gradients_equal_central_differences() {
    let dims = Dims { batch: 3, inputs: 7, hidden: 5 };
    let operands = Operands::random(dims, 11);
    let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
    let (x, wf, dz) = (wide(&operands.x), wide(&operands.wf), wide(&operands.dz));
    let got = swiglu(dims, &operands);
    let step = 1e-6;
    let difference = |values: &[f64], i: usize, f: &dyn Fn(&[f64]) -> f64| {
        let mut moved = values.to_vec();
        moved[i] = values[i] + step;
        let up = f(&moved);
        moved[i] = values[i] - step;
        (up - f(&moved)) / (2.0 * step)
    };
    let mut largest = 0.0_f64;
    for i in 0..x.len() {
        let want = difference(&x, i, &|x| objective(dims, x, &wf, &dz));
        assert!((got.dx[i] - want).abs() < 1e-8, "dx[{i}]: {} and by differences {want}", got.dx[i]);
        largest = largest.max(want.abs());
    }
    for i in 0..wf.len() {
        let want = difference(&wf, i, &|wf| objective(dims, &x, wf, &dz));
        assert!((got.dwf[i] - want).abs() < 1e-8, "dwf[{i}]: {} and by differences {want}", got.dwf[i]);
    }
    // The tolerance means something only while the gradients are far larger.
    assert!(largest > 0.1, "{largest}");
}

#[test]
fn gradients_of_the_whole_network_equal_central_differences() {
    let case = TrainingCase::new(Dims { batch: 5, inputs: 6, hidden: 7 }, 2, 4);
    let network = case.network(true, |value| value);
    let x: Vec<f64> = (0..5 * 784).map(|i| f64::from(i * 37 % 101) / 50.0 - 1.0).collect();
    let labels = [3, 1, 4, 1, 9];
    let (_, grads) = network.gradients(&x, &labels);
    assert_eq!(grads.len(), case.weights.len());
    let step = 1e-5;
    for (name, grads) in grads {
        let mut largest = 0.0_f64;
        // All of the small ones; every 97th of the stem's.
        let stride = if grads.len() > 1000 { 97 } else { 1 };
        for (i, &got) in grads.iter().enumerate().step_by(stride) {
            let loss = |by: f64| {
                let mut moved = network.clone();
                moved.weights.get_mut(&name).expect("it is there")[i] += by;
                moved.gradients(&x, &labels).0
            };
            let want = (loss(step) - loss(-step)) / (2.0 * step);
            assert!((got - want).abs() < 1e-8, "{name}[{i}]: {got} and by differences {want}");
            largest = largest.max(want.abs());
        }
        assert!(largest > 1e-3, "{name}: {largest}");
    }
}
