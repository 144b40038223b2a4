"""What a weight costs in memory, and what 10 billion of them would.

    python -m benchmarks.weight_memory

Counts the bytes of the variables of a compiled model, and measures by how much
the resident memory of a process grows over a training step of one layer of
4096 x 4096 weights, in a process of its own for each case. The rest is
arithmetic: gigabytes are 10^9 bytes, and devices have equal shares, as under
`keras.distribution.ModelParallel` with all kernels split. A step needs at
least what is stored and the gradients, and at most all that it adds in the
one layer, for all weights at the same time. Linux and TensorFlow only: what
JAX's allocator keeps hides a step; `python -m benchmarks` prints XLA's plan.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import rich.console
import rich.table

import keras_vd
from benchmarks.memory import forget_peak, resident

WEIGHTS = 10**10
DEVICES = (8, 16, 64)
POSTERIORS = {
    "plain Keras": None,
    "sparse_vd, share=weight": keras_vd.posteriors.SparseVD(),
    "sparse_vd, share=unit": keras_vd.posteriors.SparseVD(share="unit"),
    "sparse_vd, share=layer": keras_vd.posteriors.SparseVD(share="layer"),
    "vd, share=weight": keras_vd.posteriors.VD(share="weight"),
    "vd, share=layer": keras_vd.posteriors.VD(),
}
CASES = [
    *((posterior, "adam", "float32") for posterior in POSTERIORS),
    ("sparse_vd, share=weight", "sgd", "float32"),
    ("sparse_vd, share=weight", "adam", "mixed_bfloat16"),
    ("sparse_vd, share=weight", "adam", "bfloat16"),
]
# What is freed goes back to the system at once, to be seen as free: neither
# the C library nor TensorFlow's pool, which comes with oneDNN, may keep it.
KEEP_NOTHING = {
    "MALLOC_MMAP_THRESHOLD_": "1000000",
    "MALLOC_TRIM_THRESHOLD_": "1000000",
    "TF_ENABLE_ONEDNN_OPTS": "0",
}


def build(
    posterior: str, optimizer: str, policy: str, units: int
) -> keras.Sequential:
    """A compiled model of one layer, with all its variables."""
    options = {"use_bias": False, "dtype": policy}
    if POSTERIORS[posterior] is None:
        layer = keras.layers.Dense(units, **options)
    else:
        layer = keras_vd.layers.VDDense(
            units, posterior=POSTERIORS[posterior], kl_weight=1e-9, **options
        )
    model = keras.Sequential([keras.Input((units,)), layer])
    model.compile(optimizer, "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def count_bytes(variables: list[keras.Variable]) -> int:
    return sum(keras.ops.convert_to_numpy(v.value).nbytes for v in variables)


def print_growth(
    posterior: str, optimizer: str, policy: str, units: int
) -> None:
    """Print the bytes per weight that a training step adds at its peak.

    Gradients are a part of them.
    """
    model = build(posterior, optimizer, policy, units)
    inputs = np.ones((256, units), "float32")
    for _ in range(3):  # of which the first compiles
        model.train_on_batch(inputs, inputs)
    growths = []
    for _ in range(5):
        forget_peak()
        before = resident("VmRSS")
        model.train_on_batch(inputs, inputs)
        growths.append(resident("VmHWM") - before)
    print(np.median(growths) / units**2)


def measure_growth(*case: str) -> float:
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.weight_memory", "--step", *case],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | KEEP_NOTHING,
    )
    return float(result.stdout.splitlines()[-1])


def table(units: int) -> rich.table.Table:
    result = rich.table.Table(
        title=f"bytes per weight, then GB for {WEIGHTS:.0e} weights "
        f"(TensorFlow, CPU, {units} x {units}, batch 256)"
    )
    headers = ("posterior", "optimizer, policy", "stored", "gradients", "step")
    for header in (*headers, "GB stored", *(f"on {n}" for n in DEVICES)):
        result.add_column(header)
    for case in CASES:
        model = build(*case, 1024)
        variables = [*model.variables, *model.optimizer.variables]
        stored = count_bytes(variables) / 1024**2
        gradients = count_bytes(model.trainable_variables) / 1024**2
        growth = measure_growth(*case, str(units))
        totals = [
            (stored + added) * WEIGHTS / 1e9 for added in (gradients, growth)
        ]
        result.add_row(
            case[0],
            ", ".join(case[1:]),
            *(f"{size:.1f}" for size in (stored, gradients, growth)),
            f"{stored * WEIGHTS / 1e9:.0f}",
            *(
                " to ".join(f"{total / count:.1f}" for total in totals)
                for count in DEVICES
            ),
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=4096)
    parser.add_argument("--step", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if keras.backend.backend() != "tensorflow":
        parser.error("run it with KERAS_BACKEND=tensorflow.")
    if arguments.step:
        *case, units = arguments.step
        print_growth(*case, int(units))
    else:
        rich.console.Console(width=130).print(table(arguments.units))


if __name__ == "__main__":
    main()
