"""What the peer scripts share: arguments, the records that they print, MNIST's files, and words for what is not there.

A script prints one JSON object a line: a record of a case; or {"missing": .., "why": ..} when a package is not there; or
{"skipped": ..} for a case that the peer does not have; or {"failed": .., "why": ..} for one that went wrong.
"""
import argparse
import gzip
import json
import os
import sys

# Largest relative Frobenius error against float64 that is still right, where the caller names none.
BOUNDS = {"fp32": 3e-6, "tf32": 1e-3, "bf16": 5e-3}


def arguments(description):
    """A parser with the flags that every script has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    shape = lambda text: tuple(int(part) for part in text.split(","))
    parser.add_argument("--device", default="cuda:0", help="cpu or cuda:N")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves them alone")
    parser.add_argument("--precision", default="fp32", help="fp32,tf32,bf16; NAME=X sets the largest error that is right")
    parser.add_argument("--shape", type=shape, action="append", metavar="B,D,H", help="may be given several times")
    parser.add_argument("--peer", default="", help="the peers wanted, by name; all when not given")
    parser.add_argument("--seed", type=int, default=1)
    return parser


def shapes(args):
    """(B, D, H) of every case: images, inputs and outputs of the layer."""
    return args.shape or [(64, 512, 512)]


def precisions(args, package):
    """(name, bound) of the precisions asked for that the package has."""
    for part in args.precision.split(","):
        name, _, bound = part.partition("=")
        if name in BOUNDS:
            yield name, float(bound or BOUNDS[name])
        else:
            say(skipped=f"{package} has no products called {name}")


def say(**record):
    """Prints a line."""
    print(json.dumps(record), flush=True)


def missing(what, error):
    """Says what is not there, and ends the script: that is no failure."""
    say(missing=what, why=" ".join(str(error).split())[:300] or type(error).__name__)
    sys.exit(0)


def warn_when_busy(args):
    """On a CPU that others use, threads that wait for one another make times many times longer: says so."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if args.device == "cpu" and load > (os.cpu_count() or 1):
        say(skipped=f"the machine is busy (load {load:.1f} on {os.cpu_count()} cores): times of the CPU's peers mean little")


def failed(what, error):
    """Says that a case went wrong; the script goes on to the next."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    say(failed=what, why=(lines[0] if lines else type(error).__name__)[:300])


def quantile(samples, share):
    """The value below which a share of the samples lies, as `mnist-swiglu` computes it."""
    ordered = sorted(samples)
    at = share * (len(ordered) - 1)
    low, high = ordered[int(at)], ordered[min(int(at) + 1, len(ordered) - 1)]
    return low + (high - low) * (at - int(at))


def times(samples):
    """The fields of a record that hold times."""
    keys = {"median_ms": 0.5, "p10_ms": 0.1, "p90_ms": 0.9}
    return {key: quantile(samples, share) for key, share in keys.items()} | {"samples": len(samples)}


def mnist(folder, name, numpy):
    """Images as fp32 rows of 784, normalised as `mnist-swiglu` does, and labels: of `train` or `t10k`."""
    def read(kind, header):
        path = os.path.join(folder, f"{name}-{kind}-ubyte")
        opened = open(path, "rb") if os.path.exists(path) else gzip.open(path + ".gz", "rb")
        with opened as file:
            return numpy.frombuffer(file.read(), numpy.uint8, offset=header).copy()
    images = read("images-idx3", 16).reshape(-1, 784).astype(numpy.float32)
    return (images / 255 - 0.1307) / 0.3081, read("labels-idx1", 8)


def run(main):
    """Runs a script; Ctrl-C ends it without a trace."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
