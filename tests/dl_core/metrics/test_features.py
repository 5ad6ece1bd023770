"""Extractors from all three sources, and what users get to read about bad ones."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from dl_core.errors import UserError
from dl_core.metrics import features
from dl_core.metrics.features import (
    flatten_variables,
    load_extractor,
    read_weights,
)
from dl_core.models.feature_classifier import FeatureClassifier


@pytest.fixture(scope="module")
def model():
    return FeatureClassifier(width=2, classes=3)


@pytest.fixture(scope="module")
def variables(model):
    return model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)), train=False)


@pytest.fixture
def save(tmp_path, variables):
    """Writes a file of weights, some entries replaced or (None) left out."""

    def write(**changes):
        entries = flatten_variables(variables) | {
            "classes": 3,
            "width": 2,
            "side": 32,
            "channels": 1,
            "accuracy": 0.5,
            "trained_on": "mnist_subset",
        }
        entries |= changes
        path = tmp_path / "classifier.npz"
        np.savez_compressed(path, **{k: v for k, v in entries.items() if v is not None})
        return path

    return write


def save_function(path, function, *shapes, platforms=("cpu",)):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    exported = export.export(jax.jit(function), platforms=platforms)(*arguments)
    path.write_bytes(exported.serialize())
    return path


def means(images):
    found = images.mean((1, 2))
    return found, 2 * found


def draw(*shape):
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, shape), jnp.float32)


def test_weights_come_back_as_they_were(save, variables):
    found, about = read_weights(save())
    jax.tree.map(np.testing.assert_array_equal, found, dict(variables))
    assert about == {
        "classes": 3,
        "width": 2,
        "side": 32,
        "channels": 1,
        "accuracy": 0.5,
        "trained_on": "mnist_subset",
    }
    assert set(variables) == {"params", "batch_stats"}
    assert "params/Conv_0/kernel" in flatten_variables(variables)


def test_a_traced_function_can_make_the_file(save, variables):
    made = jax.jit(flatten_variables)(variables)
    path = save(**made, trained_on=np.frombuffer("façade/ü".encode(), np.uint8))
    assert read_weights(path)[1]["trained_on"] == "façade/ü"


def test_an_extractor_of_weights(save, model, variables):
    extract = load_extractor(save())
    images = draw(4, 32, 32, 1)
    wanted, endpoints = model.apply(variables, images, train=False)
    found, logits = jax.jit(extract)(images)
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found, endpoints["features"], rtol=1e-4, atol=1e-5)
    assert found.shape == (4, 64)


def test_images_of_another_side_are_resized(save):
    extract, images = load_extractor(save()), draw(2, 20, 20, 1)
    resized = jax.image.resize(images, (2, 32, 32, 1), "bilinear")
    np.testing.assert_allclose(extract(images)[0], extract(resized)[0], atol=1e-5)


def test_it_is_loaded_while_tracing_and_again_when_the_file_has_changed(save):
    path, images = save(), draw(2, 32, 32, 1)
    first = jax.jit(lambda x: load_extractor(path)(x))(images)
    assert load_extractor(path) is load_extractor(path)
    again = load_extractor(path)(images)
    np.testing.assert_allclose(first[1], again[1], rtol=1e-4, atol=1e-5)
    save(**{"params/Dense_1/bias": np.full(3, 100, np.float32)})
    assert load_extractor(path)(images)[1].min() > 50


def test_the_shipped_classifier():
    extract = load_extractor("mnist_subset")
    found, logits = extract(draw(2, 32, 32, 1))
    assert (found.shape, logits.shape) == ((2, 64), (2, 10))
    assert read_weights(features.SHIPPED["mnist_subset"])[1]["accuracy"] > 0.9


def test_the_example_of_the_docstring(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = doctest.DocTestParser().get_doctest(
        features.__doc__, vars(features), "features", None, None
    )
    results = doctest.DocTestRunner().run(example)
    assert results.attempted >= 10
    assert results.failed == 0


def test_an_exported_function_of_one_size_and_of_any(tmp_path):
    shape = export.symbolic_shape("n, h, w")
    images = draw(5, 8, 8, 3)
    fixed = save_function(tmp_path / "fixed", means, (shape[0], 4, 4, 3))
    free = save_function(tmp_path / "free", means, (*shape, 3))
    halves = jax.image.resize(images, (5, 4, 4, 3), "bilinear")
    for path, seen in [(fixed, halves), (free, images)]:
        found, logits = load_extractor(path)(images)
        np.testing.assert_allclose(found, seen.mean((1, 2)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(logits, 2 * found, rtol=1e-6)


def test_an_exported_function_is_mapped_over_points(tmp_path):
    (n,) = export.symbolic_shape("n")
    extract = load_extractor(save_function(tmp_path / "f", means, (n, 4, 4, 3)))
    images = draw(2, 3, 5, 4, 4, 3)
    found, logits = jax.jit(jax.vmap(jax.vmap(extract)))(images)
    np.testing.assert_allclose(found, images.mean((3, 4)), rtol=1e-5, atol=1e-6)
    assert logits.shape == (2, 3, 5, 3)


def test_grey_images_are_repeated_and_colour_is_not_thrown_away(save, tmp_path):
    (n,) = export.symbolic_shape("n")
    colour = load_extractor(save_function(tmp_path / "f", means, (n, 4, 4, 3)))
    grey = draw(2, 4, 4, 1)
    repeated = jnp.repeat(grey, 3, axis=-1)
    np.testing.assert_allclose(colour(grey)[0], colour(repeated)[0])
    with pytest.raises(UserError, match="takes images of 1 channel, and these have 3"):
        load_extractor(save())(draw(2, 32, 32, 3))
    with pytest.raises(UserError, match="takes images of 3 channels, and these have 2"):
        colour(draw(2, 4, 4, 2))


def test_names_and_paths_that_are_not_there(tmp_path, save, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"'mnist_subst'.*did you mean 'mnist_subset'"):
        load_extractor("mnist_subst")
    wrong = str(save().with_name("clasifier.npz"))
    with pytest.raises(UserError, match=r"clasifier.npz'.*mean 'classifier.npz'"):
        load_extractor(wrong)
    with pytest.raises(UserError, match=r"no classifier '/no/such/folder/x' \(no file"):
        load_extractor("/no/such/folder/x")
    with pytest.raises(UserError, match="there is no classifier"):
        read_weights(wrong)


@pytest.mark.parametrize("content", [b"", b"words", b"PK\x03\x04 torn"])
@pytest.mark.parametrize("name", ["weights.npz", "function"])
def test_files_that_are_something_else(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path} cannot be read as .*: expected"):
        load_extractor(path)


def test_files_that_are_torn_or_flipped(tmp_path, save):
    whole = save().read_bytes()
    path = tmp_path / "torn.npz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        load_extractor(path)
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + b"\xff" * 9 + whole[middle + 9 :])
    with pytest.raises(UserError, match="cannot be read"):
        load_extractor(path)
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(UserError, match="cannot be read"):
        load_extractor(path)
    function = save_function(
        tmp_path / "f", means, (*export.symbolic_shape("n"), 4, 4, 3)
    )
    function.write_bytes(function.read_bytes()[:200])
    with pytest.raises(UserError, match="cannot be read as an exported function"):
        load_extractor(function)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": None, "side": None}, "it lacks side, width"),
        ({"classes": np.ones(2)}, "cannot be read"),
        ({"width": 4}, r"of width 4 with 3 classes: .* has \(2,\), expected \(4,\)"),
        ({"params/Dense_1/bias": None}, "Dense_1/bias it has none, expected"),
        ({"params/More/bias": np.ones(3)}, "More/bias it has .3,., expected none"),
        ({"side": 16}, "expected images of 32×32 pixels"),
        ({"params/Dense_1/bias": np.full(3, np.nan)}, "Dense_1/bias is not finite"),
    ],
)
def test_weights_of_something_else(save, changes, message):
    with pytest.raises(UserError, match=message):
        load_extractor(save(**changes))


def test_functions_of_another_kind(tmp_path):
    (n,) = export.symbolic_shape("n")
    path = tmp_path / "f"
    wrong = [
        (means, [(8, 4, 4, 3)], r"takes \(8, 4, 4, 3\) to \(8, 3\) and \(8, 3\)"),
        (lambda x: x.mean((1, 2)), [(n, 4, 4, 3)], r"to \(n, 3\): expected"),
        (lambda x: (x, x), [(n, 4)], r"takes \(n, 4\) to"),
        (lambda x, y: means(x + y), [(n, 4, 4, 3)] * 2, r"\(n, 4, 4, 3\) and \(n"),
        (lambda x: (x[0, 0], x[0, 0]), [(n, 4, 4, 3)], r"to \(4, 3\) and \(4, 3\)"),
    ]
    for function, shapes, message in wrong:
        with pytest.raises(UserError, match=message):
            load_extractor(save_function(path, function, *shapes))
    save_function(path, means, (n, 4, 4, 3), platforms=("cuda",))
    with pytest.raises(UserError, match="exported for cuda, and this is a cpu"):
        load_extractor(path)


def test_the_number_of_classes_is_checked():
    extractor = load_extractor("mnist_subset")
    extractor.require_classes(10)
    with pytest.raises(UserError, match=r"expected one of 1000 classes, and it has 10"):
        extractor.require_classes(1000)
