#!/usr/bin/env python3
"""The strongest peer found for MNIST epochs: the same network in JAX, a whole epoch jitted as one lax.scan.

  Linear 784 -> D, SwiGLU D -> H, Linear H -> 10; softmax cross-entropy; SGD with momentum; data on the device

On a CUDA GPU (jax with CUDA) or the CPU. Weights are (in, out), drawn from the seed; a constant learning rate; the last,
ragged batch is left out. The first epoch compiles and is not timed. An epoch's time is wall time until its losses are there.
"""
import os
import time

import common


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--data", default="data", help="folder with the four MNIST files, plain or .gz")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--weights", default="learn", help="learn,frozen: whether the layer's weights do")
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--momentum", type=float, default=0.95)
    parser.add_argument("--weight-decay", type=float, default=0.0005)
    args = parser.parse_args()
    cuda = args.device.startswith("cuda")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if not cuda:
        os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        import numpy
        import jax
        import jax.numpy as jnp
    except Exception as error:
        common.missing("jax", error)
    try:
        number = int(args.device.partition(":")[2] or 0)
        device = jax.devices("cuda" if cuda else "cpu")[number]
    except Exception as error:
        common.missing("jax with CUDA" if cuda else "jax", error)
    common.warn_when_busy(args)
    versions = {"jax": jax.__version__}
    images, labels = common.mnist(args.data, "train", numpy)
    test_images, test_labels = common.mnist(args.data, "t10k", numpy)
    with jax.default_device(device):
        x, y, test_x = jnp.asarray(images), jnp.asarray(labels.astype(numpy.int32)), jnp.asarray(test_images)

        def measure(precision, batch, inputs, hidden, frozen):
            dtype = jnp.bfloat16 if precision == "bf16" else jnp.float32
            steps = len(y) // batch

            def logits_of(learns, stays, pixels):
                p = {name: value.astype(dtype) for name, value in (learns | stays).items()}
                h = pixels.astype(dtype) @ p["stem"] + p["stem_bias"]
                z = jax.nn.silu(h @ p["gate"]) * (h @ p["up"])
                return (z @ p["head"] + p["head_bias"]).astype(jnp.float32)

            def loss_of(learns, stays, pixels, digits):
                logs = jax.nn.log_softmax(logits_of(learns, stays, pixels))
                return -jnp.mean(jnp.take_along_axis(logs, digits[:, None], 1))

            @jax.jit
            def epoch(learns, momenta, stays, order):
                def step(carry, rows):
                    learns, momenta = carry
                    loss, grads = jax.value_and_grad(loss_of)(learns, stays, x[rows], y[rows])
                    decayed = jax.tree.map(lambda g, p: g + args.weight_decay * p * (p.ndim > 1), grads, learns)
                    momenta = jax.tree.map(lambda m, g: args.momentum * m + g, momenta, decayed)
                    return (jax.tree.map(lambda p, m: p - args.lr * m, learns, momenta), momenta), loss
                rows = order[: steps * batch].reshape(steps, batch)
                (learns, momenta), losses = jax.lax.scan(step, (learns, momenta), rows)
                return learns, momenta, losses

            infer = jax.jit(lambda learns, stays, pixels: logits_of(learns, stays, pixels).argmax(1))
            keys = jax.random.split(jax.random.PRNGKey(args.seed), 4)
            draw = lambda key, rows, cols: jax.random.uniform(key, (rows, cols), minval=-1.0) * rows**-0.5
            layer = dict(gate=draw(keys[1], inputs, hidden), up=draw(keys[2], inputs, hidden))
            rest = dict(stem=draw(keys[0], 784, inputs), stem_bias=jnp.zeros(inputs),
                        head=draw(keys[3], hidden, 10), head_bias=jnp.zeros(10))
            learns, stays = (rest, layer) if frozen else (rest | layer, {})
            momenta = jax.tree.map(jnp.zeros_like, learns)
            epochs, inferences = [], []
            for number in range(args.epochs + 1):
                order = jax.random.permutation(jax.random.PRNGKey(args.seed + number), len(y)).block_until_ready()
                begin = time.perf_counter()
                learns, momenta, losses = epoch(learns, momenta, stays, order)
                losses.block_until_ready()
                epochs.append((time.perf_counter() - begin) * 1e3)
            for _ in range(4):
                begin = time.perf_counter()
                said = infer(learns, stays, test_x).block_until_ready()
                inferences.append((time.perf_counter() - begin) * 1e3)
            accuracy = float((numpy.asarray(said) == test_labels).mean())
            found = common.times(epochs[1:])
            return found | {"infer_ms": common.quantile(inferences[1:], 0.5), "accuracy": accuracy}

        for precision, bound in common.precisions(args, "JAX"):
            names = {"fp32": "highest", "tf32": "tensorfloat32", "bf16": "default"}
            jax.config.update("jax_default_matmul_precision", names[precision])
            for batch, inputs, hidden in common.shapes(args):
                for weights in args.weights.split(","):
                    try:
                        measured = measure(precision, batch, inputs, hidden, weights == "frozen")
                    except Exception as problem:
                        common.failed(f"jax, epochs, {precision}, B,D,H = {batch},{inputs},{hidden}", problem)
                        continue
                    common.say(
                        peer="jax", name=f"JAX {jax.__version__}, scan", versions=versions,
                        device=args.device, gpu=device.device_kind if cuda else None, precision=precision, B=batch,
                        D=inputs, H=hidden, cache="warm", rel_err=None, bound=bound, ok=True,
                        trains_wf=weights != "frozen", seed=args.seed, **{"pass": "epoch"}, **measured)


if __name__ == "__main__":
    common.run(main)
