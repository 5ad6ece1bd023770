"""Publishes a finished sweep: python -m launch.publish --experiment=NAME --sweep=SWEEP

Copies what was measured beside the experiment, into `experiments/<topic>/results/`: a
JSON file with the rows of every run and what produced them, and the figures that draw
the sweep. Those of a preset have its name after a hyphen: `adding.networks-paper.json`.
Then renews what is made from these files alone: the table of the README, and of every
topic a page with all numbers and figures, `experiments/<topic>/README.md`. `--readme`
renews these only.
"""

import json
import pathlib
import sys

from absl import flags

from dl_core.errors import UserError
from dl_core.files import write_atomically
from launch import app, registry
from launch import flags as shared

FLAGS = flags.FLAGS
shared.define_sweep_flag()
flags.adopt_module_key_flags(shared)
flags.DEFINE_bool(
    "readme", False, "Renew the README's table and the topics' pages only."
)

README = pathlib.Path(registry.ROOT).parent / "README.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def main(args: list[str]) -> int:
    """Publishes the sweep that the flags choose."""
    if args:
        raise UserError(f"{args[0]!r} is not a flag; see --help")
    if not FLAGS.readme:
        if FLAGS.sweep is None:
            raise UserError("--sweep is missing; see python -m launch.list")
        for path in publish():
            print(path)
    for path, text in pages().items():
        if not path.exists() or path.read_text() != text:
            write_atomically(path, text)
            print(path)
    return app.DONE


def publish() -> list[pathlib.Path]:
    """Writes the results and the figures of the chosen sweep; returns the files."""
    from dl_core.config import to_dict
    from dl_core.results import Run
    from launch import commands
    from launch.figures import draw, require_complete
    from launch.points import chosen_sweep

    sweep = chosen_sweep(FLAGS.sweep)
    require_complete(sweep, "publishing")
    runs = [Run.read(point.path) for point in sweep.points]
    shared_fields = ("commit", "versions", "device")
    published = {
        "experiment": sweep.experiment.name,
        "sweep": sweep.name,
        "preset": FLAGS.preset or "default",
        "command": commands.of_sweep("launch.sweep", sweep, places=False),
        "base": to_dict(sweep.base),
        **{name: _common(name, runs) for name in shared_fields},
        "seconds": round(sum(run.seconds for run in runs), 1),
        "runs": [
            {
                "changes": dict(point.changes),
                **{k: run.result[k] for k in ("status", "step", "seconds", "metrics")},
            }
            for point, run in zip(sweep.points, runs, strict=True)
        ],
    }
    folder = registry.results_folder(sweep.experiment.name)
    folder.mkdir(exist_ok=True)
    module = sweep.experiment.name.split(".")[1]
    of_preset = _suffix(published)
    files = [folder / f"{module}.{sweep.name}{of_preset}.json"]
    write_atomically(files[0], _one_run_a_line(published))
    for name, function in sweep.experiment.figures.items():
        if function.sweep == sweep.name:
            png, _ = draw(sweep.experiment, name)
            files.append(folder / f"{module}.{name}{of_preset}.png")
            write_atomically(files[-1], png.read_bytes())
    return files


def published(name: str) -> dict[str, dict]:
    """Returns the published results of an experiment.

    They are under the name of their sweep; those of a preset other than the default
    under "sweep-preset".
    """
    module = name.split(".")[1]
    paths = sorted(registry.results_folder(name).glob(f"{module}.*.json"))
    found = [json.loads(path.read_text()) for path in paths]
    return {results["sweep"] + _suffix(results): results for results in found}


def figure_paths(experiment, results: dict) -> dict[str, pathlib.Path]:
    """Returns the published figures that draw some published results, by name."""
    folder = registry.results_folder(experiment.name)
    module = experiment.name.split(".")[1]
    paths = {
        name: folder / f"{module}.{name}{_suffix(results)}.png"
        for name, function in experiment.figures.items()
        if function.sweep == results["sweep"]
    }
    return {name: path for name, path in paths.items() if path.exists()}


def _suffix(results: dict) -> str:
    preset = results.get("preset", "default")
    return "" if preset == "default" else f"-{preset}"


def as_runs(results: dict):
    """Returns published results as the `Runs` that a summary reads."""
    from dl_core.config import flatten
    from dl_core.results import Run, Runs

    base = flatten(results["base"])
    return Runs(Run(base | run["changes"], (), run) for run in results["runs"])


def summaries(name: str) -> dict[str, str]:
    """Returns a sentence with the measured result for each of `published`."""
    found = published(name)
    if not found:
        return {}
    experiment = registry.load(name)
    told = {}
    order = list(experiment.sweeps)
    for label in sorted(found, key=lambda x: (order.index(found[x]["sweep"]), x)):
        try:
            told[label] = experiment.summary(as_runs(found[label]))
        except (KeyError, IndexError) as error:
            raise UserError(
                f"the published results of {name}, {label}, do not fit the experiment "
                f"any more ({error!r} is missing): run and publish them again"
            ) from error
    return told


def pages() -> dict[pathlib.Path, str]:
    """Returns the README and the topics' pages, made anew from published results."""
    texts = {README: renewed(README.read_text())}
    for topic, names in registry.topics().items():
        texts[pathlib.Path(registry.ROOT, topic, README.name)] = _page(topic, names)
    return texts


def renewed(text: str) -> str:
    """Returns the README's text with its table made anew from the published results.

    Of each experiment it has the first of the published sweeps.
    """
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    rows = ["| experiment | topic | measured |", "| --- | --- | --- |"]
    for name in registry.names():
        topic, module = name.split(".")
        link = f"[`{name}`](experiments/{topic}/{module}.py)"
        sentences = summaries(name)
        more = f"[all numbers and figures](experiments/{topic}/{README.name}#{module})"
        measured = f"{next(iter(sentences.values()))} {more}" if sentences else ""
        rows.append(f"| {link} | {registry.outline(name).topic} | {measured} |")
    return head + BEGIN + "\n" + "\n".join(rows) + "\n" + END + tail


def _page(topic: str, names: list[str]) -> str:
    """Returns a topic's page: of each experiment all that is published."""
    lines = [
        f"# {topic}",
        "What the experiments of this topic gave: mean ± standard deviation over "
        "seeds. Made by `python -m launch.publish` from the files in `results/`; what "
        "to look for is said at the top of each module.",
    ]
    for name in names:
        module = name.split(".")[1]
        lines += [f"## [{module}]({module}.py)", registry.outline(name).topic]
        found = published(name)
        for label, sentence in summaries(name).items():
            results = found[label]
            cost = f"{len(results['runs'])} runs, {_duration(results['seconds'])}"
            lines += [
                f"**{label}** ({cost} on {results['device']}). {sentence}",
                f"```sh\n{results['command']}\n```",
            ]
            for figure, path in figure_paths(registry.load(name), results).items():
                lines.append(f"![{module}, {figure}](results/{path.name})")
    return "\n\n".join(lines) + "\n"


def _common(name: str, runs: list) -> object:
    values = {json.dumps(run.result.get(name)) for run in runs}
    found = [json.loads(value) for value in sorted(values)]
    return found[0] if len(found) == 1 else found


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _one_run_a_line(results: dict) -> str:
    runs = ",\n".join(f"    {json.dumps(run)}" for run in results["runs"])
    head = json.dumps({**results, "runs": []}, indent=2)
    return head.replace('"runs": []', f'"runs": [\n{runs}\n  ]') + "\n"


if __name__ == "__main__":
    app.run(main, shared.define_config_flags)
    sys.exit()
