"""Classifiers whose features the metrics of this package compare images by.

An extractor is a traceable function, images "n height width channels" in [-1, 1] to
(features "n d", logits "n classes"), its weights fixed. `load_extractor` takes

- the name of one that ships with the project: "mnist_subset";
- the path of weights (.npz) that a run of the experiment `gans.features` has written;
- the path of a function that was exported with `jax.export`: any network that JAX can
  call, Inception with its published weights among them. The number of images must be
  symbolic; their side and channels are read off the function. To write one:

>>> import pathlib
>>> import jax, jax.numpy as jnp
>>> from jax import export
>>> weights = jnp.ones((3, 10))
>>> def extract(images):  # float32 in [-1, 1]
...     features = images.mean((1, 2))
...     return features, features @ weights
>>> (n,) = export.symbolic_shape("n")
>>> images = jax.ShapeDtypeStruct((n, 299, 299, 3), jnp.float32)
>>> exported = export.export(jax.jit(extract), platforms=("cpu", "cuda"))(images)
>>> _ = pathlib.Path("mine.jaxexport").write_bytes(exported.serialize())
>>> features, logits = load_extractor("mine.jaxexport")(jnp.zeros((5, 32, 32, 1)))
>>> features.shape, logits.shape
((5, 3), (5, 10))

Images of another side are resized to the extractor's (bilinear, with antialiasing where
they shrink). Grey images are repeated to three channels
where the extractor wants three; colour is not thrown away, so a grey extractor refuses
colour images.
"""

import dataclasses
import functools
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import export
from jaxtyping import Array, Float, PyTree

from dl_core.errors import UserError, nearest
from dl_core.models.feature_classifier import FeatureClassifier

Outputs = tuple[Float[Array, "n d"], Float[Array, "n classes"]]
"""Features, and logits."""

SHIPPED = {"mnist_subset": pathlib.Path(__file__).parent / "weights/mnist_subset.npz"}
"""The extractors that come with the project, and their weights."""

_DAMAGED = (zipfile.BadZipFile, zlib.error)
_COLLECTIONS = ("params", "batch_stats")
_ABOUT = {
    "classes": int,
    "width": int,
    "side": int,
    "channels": int,
    "accuracy": float,
    "trained_on": str,
}


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A function from images to features and logits; traceable, its weights fixed."""

    name: str
    """As it was asked for; the metrics are named after it."""
    size: tuple[int, int] | None
    """Height and width that the network takes; None for any."""
    channels: int
    network: Callable[[Float[Array, "n h w c"]], Outputs]

    def __call__(self, images: Float[Array, "n height width channels"]) -> Outputs:
        """Returns the features and the logits.

        Args:
          images: from -1 to 1; resized, and repeated from one channel to three, where
            the network needs it.

        Raises:
          UserError: if the images have a number of channels that does not fit.
        """
        n, *size, channels = images.shape
        if channels != self.channels and (channels, self.channels) != (1, 3):
            raise UserError(
                f"the classifier {self.name!r} does not fit: it takes images of "
                f"{_channels(self.channels)}, and these have {channels}"
            )
        size = self.size or size
        images = jax.image.resize(images, (n, *size, channels), "bilinear")
        return self.network(jnp.broadcast_to(images, (n, *size, self.channels)))

    def require_classes(self, count: int) -> None:
        """Raises a `UserError` unless the logits are of so many classes."""
        shape = (1, *(self.size or (32, 32)), self.channels)
        _, logits = jax.eval_shape(self, jax.ShapeDtypeStruct(shape, jnp.float32))
        if logits.shape[-1] != count:
            raise UserError(
                f"the classifier {self.name!r} does not fit: expected one of {count} "
                f"classes, and it has {logits.shape[-1]}"
            )


def load_extractor(name_or_path: str | os.PathLike) -> Extractor:
    """Returns an extractor; the module's docstring says what it can be made from.

    It may be called while tracing. A file is read once, and again after it has changed.

    Args:
      name_or_path: a key of `SHIPPED`, or the path of a file of weights, which ends in
        .npz, or of an exported function.

    Raises:
      UserError: if there is no such extractor, or its file is damaged or holds
        something else.
    """
    name = os.fspath(name_or_path)
    path = SHIPPED.get(name, pathlib.Path(name).expanduser()).absolute()
    if not path.is_file():
        raise _missing(name, path)
    return _load(name, path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _load(name: str, path: pathlib.Path, changed: int) -> Extractor:
    return (_classifier if path.suffix == ".npz" else _exported)(name, path)


def _classifier(name: str, path: pathlib.Path) -> Extractor:
    variables, about = read_weights(path)
    side, channels = about["side"], about["channels"]
    model = FeatureClassifier(about["width"], about["classes"])
    _check(variables, model, (1, side, side, channels), path)

    def network(images: Float[Array, "n h w c"]) -> Outputs:
        arrays = jax.tree.map(jnp.asarray, variables)
        logits, endpoints = model.apply(arrays, images, train=False)
        return endpoints["features"], logits

    return Extractor(name, (side, side), channels, network)


def _check(
    variables: PyTree, model: FeatureClassifier, shape: tuple[int, ...], path: Any
) -> None:
    """Raises a `UserError` unless the variables are those of the model, and finite."""
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    init = functools.partial(model.init, train=False)
    try:
        wanted = flatten_variables(jax.eval_shape(init, jax.random.key(0), images))
    except ValueError as error:
        raise UserError(f"{path} holds weights for no classifier: {error}") from None
    found = flatten_variables(variables)
    for name in {**wanted, **found}:
        shapes = [np.shape(x[name]) if name in x else "none" for x in (found, wanted)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{path} does not hold the weights of a classifier of width "
                f"{model.width} with {model.classes} classes: of {name} it has "
                f"{shapes[0]}, expected {shapes[1]}"
            )
        if not np.isfinite(found[name]).all():
            raise UserError(f"{path} is no trained classifier: {name} is not finite")


def _exported(name: str, path: pathlib.Path) -> Extractor:
    try:
        exported = export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # Whatever a reader of flat buffers stumbles over.
        raise UserError(
            f"{path} cannot be read as an exported function ({error}): expected what "
            "jax.export's serialize() returns, or weights whose name ends in .npz"
        ) from None
    inputs = [aval.shape for aval in exported.in_avals]
    outputs = [aval.shape for aval in exported.out_avals]
    number, *size, channels = inputs[0] if list(map(len, inputs)) == [4] else [0] * 4
    if (
        isinstance(number, int)
        or not isinstance(channels, int)
        or list(map(len, outputs)) != [2, 2]
        or any(shape[0] != number for shape in outputs)
    ):
        raise UserError(
            f"the function in {path} takes {_shapes(inputs)} to {_shapes(outputs)}: "
            "expected images (n, height, width, channels) to features (n, d) and "
            "logits (n, classes), their number n symbolic"
        )
    backend = jax.default_backend()
    if not {"gpu": {"cuda", "rocm"}}.get(backend, {backend}) & {*exported.platforms}:
        raise UserError(
            f"the function in {path} was exported for "
            f"{' and '.join(exported.platforms)}, and this is a {backend}: give "
            "jax.export.export the platforms it shall run on"
        )
    dtype = exported.in_avals[0].dtype

    @jax.custom_batching.custom_vmap
    def network(images):
        return tuple(exported.call(images.astype(dtype)))

    @network.def_vmap
    def _(axis_size, in_batched, images):
        # JAX maps no exported function; the rows of all members make one batch.
        outputs = network(images.reshape(-1, *images.shape[2:]))
        outputs = tuple(x.reshape(axis_size, -1, x.shape[-1]) for x in outputs)
        return outputs, (True, True)

    fixed = all(isinstance(pixels, int) for pixels in size)
    return Extractor(name, tuple(size) if fixed else None, channels, network)


def _shapes(shapes: list[tuple[Any, ...]]) -> str:
    return " and ".join(f"({', '.join(map(str, shape))})" for shape in shapes)


def _channels(count: int) -> str:
    return f"{count} channel{'s' if count > 1 else ''}"


def flatten_variables(variables: PyTree) -> dict[str, Any]:
    """Returns the leaves of `params` and `batch_stats`, each by its path joined by "/".

    With the entries "classes", "width", "side", "channels", "accuracy" and "trained_on"
    beside them, saved by `numpy.savez`, this is a file of weights. The leaves may be
    traced, so that `observe` can return them.
    """
    kept = {name: variables[name] for name in _COLLECTIONS if name in variables}
    return traverse_util.flatten_dict(kept, sep="/")


def read_weights(path: str | os.PathLike) -> tuple[PyTree, dict[str, Any]]:
    """Reads a file of weights.

    Args:
      path: an .npz file with an entry for each parameter, "params/Conv_0/kernel", and
        those that `flatten_variables` names beside them. "trained_on", a data set's
        name, is a string or, as traced functions return no strings, its UTF-8 bytes.

    Returns:
      The variables of a `dl_core.models.feature_classifier.FeatureClassifier`, and what
      is known about it: "classes", "width", "side" (pixels), "channels" (numbers),
      "accuracy" (from 0 to 1, on the test set) and "trained_on".

    Raises:
      UserError: if there is no such file, or it is damaged or holds something else.
    """
    path = pathlib.Path(path).expanduser()
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        lacking = _ABOUT.keys() - arrays.keys()
        if lacking:
            raise ValueError(f"it lacks {', '.join(sorted(lacking))}")
        about = {name: _plain(arrays[name], kind) for name, kind in _ABOUT.items()}
    except FileNotFoundError:
        raise _missing(str(path), path) from None
    except (OSError, ValueError, EOFError, TypeError, *_DAMAGED) as error:
        raise UserError(
            f"{path} cannot be read as a classifier's weights ({error}): expected the "
            ".npz file that a run of gans.features writes"
        ) from None
    parts = {n: x for n, x in arrays.items() if n.split("/")[0] in _COLLECTIONS}
    return traverse_util.unflatten_dict(parts, sep="/"), about


def _plain(array: np.ndarray, kind: type) -> Any:
    if kind is str and array.dtype == np.uint8:
        return array.tobytes().decode()
    return kind(array.item())


def _missing(name: str, path: pathlib.Path) -> UserError:
    beside = path.parent.iterdir() if path.parent.is_dir() else []
    return UserError(
        f"there is no classifier {name!r} (no file {path}): expected "
        f"{', '.join(SHIPPED)}, or the path of weights (.npz) or an exported function"
        f"{nearest(path.name, [*SHIPPED, *(p.name for p in beside)])}"
    )
