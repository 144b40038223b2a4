"""From plain to variational and back, by way of files: predictions stay.

`python -m tools.round_trips --networks 1000 --seed 0 [--applications]`

Plain -> variational -> saved -> loaded -> pruned -> saved -> loaded ->
deterministic -> shrunk -> a compressed file, and on TensorFlow, for one
network in so many, every writer. The oracle of each step is what the step
before predicted; masks and KL divergences are equal after loading.
"""

from __future__ import annotations

import argparse
import collections
import gc
import pathlib
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

import keras_vd
from keras_vd import deployment, posteriors
from keras_vd._backend.keras_internals import flatten_layers
from keras_vd.deployment.litert import ADVICE
from tools.checking import Case, finish, run_cases
from tools.random_networks import make_network
from tools.shrink_networks import (
    RTOL,
    RTOL_16_BITS,
    largest_difference,
    predict,
)

WRITERS: dict[str, tuple[str, Callable[..., Any]]] = {
    "saved_model": ("saved", deployment.export_saved_model),
    "litert": ("model.tflite", deployment.export_litert),
    "onnx": ("model.onnx", deployment.export_onnx),
    "packed": ("packed", deployment.export_packed),
}
# Smallest of each family, and the smallest input that it takes.
APPLICATIONS = {
    "Xception": 71,
    "VGG16": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "InceptionV3": 75,
    "InceptionResNetV2": 75,
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "DenseNet121": 32,
    "NASNetMobile": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "ConvNeXtTiny": 32,
}


def random_posterior(generator: np.random.Generator) -> Any:
    """A posterior with options, or its name."""

    def pick(*options: Any) -> Any:
        return options[generator.integers(len(options))]

    name = pick("sparse_vd", "ard", "gaussian", "vd")
    if pick(True, False, False):
        return name
    options = {
        "share": pick("weight", "unit", "layer"),
        "estimator": pick("local", "weight"),
        "kl_scale": pick(1.0, 0.5),
    }
    if name == "vd":
        options["max_alpha"] = pick(1.0, None)
    elif name != "gaussian":
        options["threshold"] = pick(3.0, 1.0)
    kinds = {
        "sparse_vd": posteriors.SparseVD,
        "ard": posteriors.ARD,
        "gaussian": posteriors.Gaussian,
        "vd": posteriors.VD,
    }
    return kinds[name](**options)


def randomize_noise(model: keras.Model, generator: np.random.Generator) -> None:
    """Noise parameters with which a part of the weights counts as zero."""
    for weight in keras_vd.variational_weights(model):
        if isinstance(weight, posteriors.VD):
            variable, mean, limit = (
                weight.shared_log_alpha,
                2.0,
                weight.max_alpha,
            )
        else:
            variable, mean, limit = weight.log_sigma2, -0.5, None
        values = generator.normal(mean, 3.0, variable.shape)
        variable.assign(np.minimum(values, np.log(limit)) if limit else values)


class RoundTrip:
    """Goes the whole way, network by network.

    Attributes:
        notes: How often each step went well, was refused or left out.
        writers_one_in: For how many networks the writers are tried once.
    """

    def __init__(self, writers_one_in: int) -> None:
        self.notes: collections.Counter[str] = collections.Counter()
        self.writers_one_in = writers_one_in

    def check(self, model: keras.Model, batches: list[Any], seed: int) -> None:
        """Take one model all the way."""
        generator = np.random.default_rng(seed)
        self.batches = batches
        layers = flatten_layers(model)
        dtypes = {str(getattr(x, "compute_dtype", "")) for x in layers}
        is_short = any("16" in dtype for dtype in dtypes)
        self.rtol = RTOL_16_BITS if is_short else RTOL
        try:
            self._go(model, generator, seed)
        except (ValueError, TypeError) as error:
            if not _is_refusal(error):
                raise
            reason = " ".join(str(error).split())
            self.notes[f"refused: {reason[:160]}"] += 1

    def _go(
        self, model: keras.Model, generator: np.random.Generator, seed: int
    ) -> None:
        expected = self._predictions(model)
        if not all(np.isfinite(x).all() for one in expected for x in one):
            # Writers refuse what they cannot compare.
            self.notes["left out: outputs that are not finite"] += 1
            return
        variational = keras_vd.to_variational(
            model,
            random_posterior(generator),
            kl_weight=(None, 1e-3)[generator.integers(2)],
            verbose=0,
        )
        self._compare("to_variational", variational, expected)
        variational = self._reloaded("saved and loaded", variational)
        self._compare("saved and loaded", variational, expected)
        randomize_noise(variational, generator)
        expected = self._predictions(variational)
        keras_vd.prune(variational)
        self._compare("prune", variational, expected)
        variational = self._reloaded("loaded after prune", variational)
        self._compare("loaded after prune", variational, expected)
        plain = keras_vd.to_deterministic(variational)
        self._compare("to_deterministic", plain, expected)
        smaller = keras_vd.shrink(plain, verbose=0)
        self._compare("shrink", smaller, expected)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model.keras"
            try:
                deployment.save_compressed(smaller, path, x=self.batches[-1])
            except OSError as error:
                if "Python lambda" not in str(error):
                    raise
                # It is checked in Keras' safe mode, and says so.
                self.notes["refused: save_compressed: a Python lambda"] += 1
                return
            except RuntimeError:
                if _runs_in_a_graph(smaller, self.batches[-1]):
                    raise
                self.notes["Keras itself cannot: predict_on_batch"] += 1
                return
            loaded = _load(path)
        self._compare("save_compressed", loaded, expected)
        is_tensorflow = keras.backend.backend() == "tensorflow"
        if is_tensorflow and seed % self.writers_one_in == 0:
            self._write(smaller)

    def _predictions(self, model: keras.Model) -> list[list[np.ndarray]]:
        return [predict(model, x) for x in self.batches]

    def _compare(
        self, step: str, model: keras.Model, expected: list[list[np.ndarray]]
    ) -> None:
        worst = max(
            largest_difference(predict(model, x), y)
            for x, y in zip(self.batches, expected, strict=True)
        )
        assert worst <= self.rtol, f"{step}: off by {worst:.1e}"
        self.notes[f"right: {step}"] += 1

    def _reloaded(self, step: str, model: keras.Model) -> keras.Model:
        """The model from a file, its masks and KL compared."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model.keras"
            model.save(path)
            loaded = _load(path)
        weights = keras_vd.variational_weights(model)
        others = keras_vd.variational_weights(loaded)
        for one, other in zip(weights, others, strict=True):
            np.testing.assert_array_equal(
                np.array(keras.ops.convert_to_numpy(one.keep_mask)),
                np.array(keras.ops.convert_to_numpy(other.keep_mask)),
                f"{step}: another mask",
            )
        divergence = float(keras_vd.kl_divergence(model))
        found = float(keras_vd.kl_divergence(loaded))
        assert found == divergence or np.isclose(found, divergence, 1e-6), (
            f"{step}: KL {found}, was {divergence}"
        )
        return loaded

    def _write(self, model: keras.Model) -> None:
        """Every writer; each compares outputs itself before it returns."""
        failures = []
        x = keras.tree.map_structure(lambda a: a[:1], self.batches[-1])
        for name, (file, write) in WRITERS.items():
            with tempfile.TemporaryDirectory() as folder:
                try:
                    write(model, pathlib.Path(folder) / file, x=x)
                    self.notes[f"right: export_{name}"] += 1
                except Exception as error:
                    if not self._is_known(error, model, folder, x):
                        failures.append(f"{name}:\n{traceback.format_exc()}")
                        continue
                    reason = " ".join(str(error).split())
                    self.notes[f"refused: export_{name}: {reason[:160]}"] += 1
        assert not failures, "\n".join(failures)

    def _is_known(
        self, error: Exception, model: keras.Model, folder: str, x: Any
    ) -> bool:
        """Whether a writer says that its runtime cannot do this, and is right.

        What LiteRT does wrong with sparse weights, it does with dense ones.
        """
        if isinstance(error, (ValueError, TypeError)):
            return _is_refusal(error)
        if not isinstance(error, RuntimeError):
            return False
        # ONNX Runtime has some operations in 64 bits, and not others.
        if "compute with float64, for which runtimes lack" in str(error):
            return True
        if ADVICE not in str(error):
            return False
        path = pathlib.Path(folder) / "dense.tflite"
        deployment.export_litert(model, path, weights="float32", x=x)
        return True


def _is_refusal(error: Exception) -> bool:
    """Whether the library says itself, in words, what it does not do."""
    frames = traceback.extract_tb(error.__traceback__)
    package = pathlib.Path(keras_vd.__file__).parent
    raised_by = pathlib.Path(frames[-1].filename)
    return package in raised_by.parents and len(str(error)) > 40


def _runs_in_a_graph(model: keras.Model, x: Any) -> bool:
    """Whether Keras computes a model otherwise than by calling it."""
    try:
        model.predict_on_batch(x)
    # Each backend has errors of its own.
    except Exception:
        return False
    return True


def _load(path: pathlib.Path) -> keras.Model:
    # A Lambda layer of a network is the network's own.
    return keras.saving.load_model(path, safe_mode=False)


def network_cases(trip: RoundTrip, seeds: range) -> Iterator[Case]:
    """Random networks of these seeds."""
    for seed in seeds:

        def case(seed: int = seed) -> None:
            network = make_network(seed)
            batches = network.batches()
            try:
                for x in batches:
                    predict(network.model, x)
            except Exception as error:
                reason = " ".join(str(error).split())[:120]
                trip.notes[f"Keras itself cannot: {reason}"] += 1
                return
            trip.check(network.model, batches, seed)

        yield f"seed {seed}", case
        if seed % 50 == 0:
            gc.collect()


def application_cases(trip: RoundTrip) -> Iterator[Case]:
    """The smallest model of every family, with random weights."""
    for number, (name, size) in enumerate(APPLICATIONS.items()):

        def case(
            name: str = name, size: int = size, seed: int = number
        ) -> None:
            keras.utils.clear_session()
            keras.utils.set_random_seed(seed)
            model = getattr(keras.applications, name)(
                weights=None,
                input_shape=(size, size, 3),
                classes=10,
                classifier_activation=None,
            )
            _randomize_statistics(model, seed)
            images = np.random.default_rng(seed).uniform(
                0.0, 255.0, (2, size, size, 3)
            )
            trip.check(model, [images.astype("float32")], seed)

        yield name, case
        gc.collect()


def _randomize_statistics(model: keras.Model, seed: int) -> None:
    """What a new model has at 0 and 1, as if it had been trained."""
    generator = np.random.default_rng(seed)
    for layer in flatten_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            for variable in layer.weights:
                values = generator.uniform(0.5, 1.5, variable.shape)
                if variable.name in ("beta", "moving_mean"):
                    values -= 1.0
                variable.assign(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--only", type=int, help="this seed alone")
    parser.add_argument("--applications", action="store_true")
    parser.add_argument(
        "--writers-one-in",
        type=int,
        default=10,
        help="on TensorFlow, try the writers for one network in so many",
    )
    arguments = parser.parse_args()
    first, count = arguments.seed, arguments.networks
    if arguments.only is not None:
        first, count = arguments.only, 1
    warnings.simplefilter("ignore")
    gc.freeze()
    backend = keras.backend.backend()
    tallies = []
    trip = RoundTrip(arguments.writers_one_in)
    tallies.append(
        run_cases(
            f"round trips of random networks, {backend}",
            network_cases(trip, range(first, first + count)),
        )
    )
    if arguments.applications:
        trip.writers_one_in = 1
        tallies.append(
            run_cases(
                f"round trips of `keras.applications`, {backend}",
                application_cases(trip),
            )
        )
    for note, number in sorted(trip.notes.items()):
        print(f"{number:6} {note}")
    finish(*tallies)


if __name__ == "__main__":
    main()
