"""Sweeps' folders written by hand, as large and as odd as a test needs them."""

import json


def sweep(folder, points, steps=12, **base):
    """Writes a sweep of toy.tiny, {number: changes}, none of whose points has begun."""
    folder.mkdir(parents=True)
    spec = {
        "experiment": "toy.tiny",
        "base": {"seed": 0, "steps": steps, **base},
        "points": {str(number): changes for number, changes in points.items()},
    }
    (folder / "sweep.json").write_text(json.dumps(spec))
    (folder / "logs").mkdir()
    return folder


def run(folder, number, rows=(), **files):
    """Writes a run's directory, with the JSON files that are named."""
    path = folder / f"{number:04d}-{number:08x}"
    path.mkdir()
    spec = json.loads((folder / "sweep.json").read_text())
    config = spec["base"] | spec["points"][str(number)]
    saved = {"experiment": spec["experiment"], "config": config}
    (path / "config.json").write_text(json.dumps(saved))
    lines = "".join(json.dumps({"stage": "train", **row}) + "\n" for row in rows)
    (path / "metrics.jsonl").write_text(lines)
    for name, values in files.items():
        (path / name).write_text(json.dumps(values))
    return path


def done(step=12, **metrics):
    """Returns what DONE holds."""
    text = f"finished {step} steps"
    return {"status": "done", "step": step, "text": text, "metrics": metrics}
