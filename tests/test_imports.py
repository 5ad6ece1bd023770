"""Who may import whom, read from the sources."""

import ast
import pathlib

import pytest

import dl_core
import experiments
import launch

ROOTS = {
    module.__name__: pathlib.Path(module.__path__[0])
    for module in (dl_core, experiments, launch)
}
SOURCES = sorted(path for root in ROOTS.values() for path in root.rglob("*.py"))


def name_of(path: pathlib.Path) -> str:
    """Returns a source's name as a module."""
    (root,) = (r for r in ROOTS.values() if path.is_relative_to(r))
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: pathlib.Path) -> set[str]:
    """Returns the modules, and the names from modules, that a source imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func)
            if called in ("__import__", "importlib.import_module", "import_module"):
                found.add(ast.unparse(node.args[0]).strip("'\"f"))
    return found


def offending(part: str, *forbidden: str) -> list[str]:
    """Returns the imports in a part of the project that fall under forbidden names."""
    return [
        f"{name_of(path)} imports {name}"
        for path in SOURCES
        if name_of(path).split(".")[0] == part
        for name in sorted(imports(path))
        if any(name == f or name.startswith(f + ".") for f in forbidden)
    ]


def test_imports_are_found(tmp_path):
    path = tmp_path / "source.py"
    path.write_text(
        "import a.b\ndef f():\n  from c import d as e, g\n"
        "import importlib\nimportlib.import_module('h.i')\n__import__('j')\n"
    )
    wanted = {"a.b", "c.d", "c.g", "importlib", "h.i", "j"}
    assert imports(path) == wanted
    assert len(SOURCES) > 30
    assert "experiments.classification.batch_norm" in map(name_of, SOURCES)


def test_the_library_knows_neither_experiments_nor_launch():
    assert offending("dl_core", "experiments", "launch") == []


def test_experiments_do_not_know_launch():
    assert offending("experiments", "launch") == []


def test_experiments_do_not_import_each_other():
    assert offending("experiments", "experiments") == []


@pytest.mark.parametrize("part", ROOTS)
def test_nothing_imports_tensorflow(part):
    assert offending(part, "tensorflow") == []


@pytest.mark.parametrize("part", ["dl_core", "experiments"])
def test_flags_are_launchs_alone(part):
    assert offending(part, "absl.flags", "absl.app", "argparse") == []


@pytest.mark.parametrize("part", ROOTS)
def test_nothing_imports_the_tests_or_their_tools(part):
    tools = ("beartype", "hypothesis", "psutil", "pytest", "tests", "torch")
    tools += ("e2cnn", "kornia", "onnx", "onnxruntime", "skimage", "pycocotools")
    tools += ("gensim", "mean_average_precision", "torchmetrics")
    # What the benchmarks measure against; they say so where torch is missing.
    names = ("torch", "torch.Tensor", "torch.nn", "torch.nn.functional")
    norms = "torch.nn.utils.parametrizations"
    names += (f"{norms}.spectral_norm", f"{norms}.weight_norm")
    modules = ["benchmark_conv"]
    for name in ("attention", "detection", "gan", "memory", "sequence"):
        modules += [f"benchmark_{name}", f"benchmark_{name}_torch"]
    allowed = {f"launch.{m} imports {name}" for m in modules for name in names}
    for name in ("gensim", "gensim.models.Word2Vec"):
        allowed.add(f"launch.benchmark_embeddings imports {name}")
    for name in ("onnx", "onnxruntime"):
        allowed.add(f"launch.benchmark_detection imports {name}")
    for name in ("", ".coco.COCO", ".cocoeval.COCOeval"):
        measure = "launch.benchmark_detection_measure imports pycocotools"
        allowed.add(f"{measure}{name}")
    assert set(offending(part, *tools)) - allowed == set()
