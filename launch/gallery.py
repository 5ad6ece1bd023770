"""Writes one page with every experiment: python -m launch.gallery

The page is a single file that loads nothing else: the text of each experiment, the
figures and numbers of its published sweeps (launch.publish), how they were measured,
and the commands that measure them again. The same results give the same bytes.
"""

import base64
import importlib
import inspect
import math
import pathlib
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from absl import flags

from dl_core.errors import UserError
from dl_core.files import write_atomically
from launch import app, publish, registry

FLAGS = flags.FLAGS
flags.DEFINE_string("output", "gallery/index.html", "The file to write.")

STYLE = pathlib.Path(__file__).with_suffix(".css")


def main(args: list[str]) -> int:
    """Writes the page where the flag says."""
    if args:
        raise UserError(f"{args[0]!r} is not a flag; see --help")
    path, written = pathlib.Path(FLAGS.output), page()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, written)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})") from None
    print(path)
    return app.DONE


def page() -> str:
    """Returns the page, as HTML."""
    names = registry.names()
    topics = registry.topics()
    measured = sum(bool(publish.published(name)) for name in names)
    # The policy keeps a browser from loading or running what is not in the file.
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Deep-learning experiments</title>
<style>
{STYLE.read_text()}</style>
</head>
<body>
<a class="skip" href="#experiments">Skip to the experiments</a>
<header>
<h1>Deep-learning experiments</h1>
<p>{len(names)} experiments on {len(topics)} topics; {measured} of them have published
results. Every figure and number below is made from those, and stands beside what
produced it.</p>
</header>
<nav aria-labelledby="contents">
<h2 id="contents">Contents</h2>
{"".join(contents(topic, members) for topic, members in topics.items())}</nav>
<main id="experiments">
{"".join(section(topic, members) for topic, members in topics.items())}</main>
<footer><p>Written by <code>python -m launch.gallery</code>.</p></footer>
</body>
</html>
"""


def contents(topic: str, names: Sequence[str]) -> str:
    """Returns a topic's part of the table of contents."""
    lines = ""
    for name in names:
        link = f'<a href="#{name}">{name.split(".")[1]}</a>'
        words = inline(registry.outline(name).topic)
        if not publish.published(name):
            words += " <small>(nothing published yet)</small>"
        lines += f"<li>{link} <span>{words}</span></li>\n"
    return f'<h3><a href="#{topic}">{topic}</a></h3>\n<ul>\n{lines}</ul>\n'


def section(topic: str, names: Sequence[str]) -> str:
    """Returns a topic: what its package says, and its experiments."""
    doc = importlib.import_module(f"experiments.{topic}").__doc__
    articles = "".join(map(article, names))
    return f"<section>\n{heading('h2', topic, doc)}{articles}</section>\n"


def article(name: str) -> str:
    """Returns all there is to show of an experiment."""
    experiment = registry.load(name)
    found, sentences = publish.published(name), publish.summaries(name)
    command = f"python -m launch.{{}} --experiment={name}".format
    sweeps = {s: f"{command('sweep')} --sweep={s}" for s in experiment.sweeps}
    parts = [heading("h3", name, experiment.doc)]
    for sweep, sweep_command in sweeps.items():
        parts.append(f"<h4>Sweep <code>{escape(sweep)}</code></h4>\n")
        labels = [label for label in sentences if found[label]["sweep"] == sweep]
        for label in labels:
            parts.append(f'<p class="measured">{escape(sentences[label])}</p>\n')
            parts += figures(experiment, found[label])
            parts.append(table(found[label], experiment.main_metric))
            parts.append(origin(found[label]))
        if not labels:
            parts.append("<p>Nothing published yet; this measures it:</p>\n")
            parts.append(pre(sweep_command))
    parts.append("<h4>Run it once, sweep it, draw its figures</h4>\n")
    parts.append(pre("\n".join([command("run"), *sweeps.values(), command("figures")])))
    return f'<article aria-labelledby="{name}">\n{"".join(parts)}</article>\n'


def figures(experiment: Any, results: Mapping[str, Any]) -> list[str]:
    """Returns the published figures that draw some published results."""
    return [
        figure(
            path.read_bytes(),
            f"{experiment.name}, {key}",
            experiment.figures[key].__doc__ or "",
        )
        for key, path in publish.figure_paths(experiment, results).items()
    ]


def heading(tag: str, name: str, doc: str) -> str:
    """Returns a heading of the first line of a docstring, then the rest of it."""
    first, _, rest = doc.partition("\n")
    title = f'<{tag} id="{name}"><code>{name}</code> {inline(first)}</{tag}>'
    return f"{title}\n{prose(rest)}"


def figure(png: bytes, label: str, caption: str) -> str:
    """Returns a figure that holds its image, at the size it was drawn for."""
    # The width in a PNG's header; launch.figures draws 120 dots an inch of 96 pixels.
    width = int.from_bytes(png[16:20], "big") * 96 // 120
    data = base64.b64encode(png).decode()
    caption = inspect.cleandoc(caption)
    alt = escape(f"{label}: {' '.join(caption.split())}")
    return f"""<figure>
<img width="{width}" alt="{alt}" src="data:image/png;base64,{data}">
<figcaption>{prose(caption)}</figcaption>
</figure>
"""


def table(results: Mapping[str, Any], metric: str) -> str:
    """Returns a table of published results, a row a point, the seeds taken together.

    Args:
      results: of one sweep, as `launch.publish` writes them.
      metric: the metric whose last value is shown.
    """
    from dl_core.results import mean_and_spread

    changed = dict.fromkeys(key for run in results["runs"] for key in run["changes"])
    fields = [field for field in changed if field != "seed"]
    points: dict[tuple[str, ...], list[float]] = {}
    for run in publish.as_runs(results):
        point = tuple(_value(run.config[field]) for field in fields)
        points.setdefault(point, []).append(run.final(metric))
    rows = []
    for point, values in points.items():
        finite = [value for value in values if math.isfinite(value)]
        spread = mean_and_spread(finite) if finite else "–"
        counts = [str(len(values)), str(len(values) - len(finite))]
        rows.append(_row("td", map(escape, [*point, spread, *counts])))
    names = [escape(name).replace(".", ".<wbr>") for name in [*fields, metric]]
    return f"""<p>The last <code>{escape(metric)}</code> of each point: mean ± standard
deviation over the seeds that did not diverge.</p>
<div class="scroll" tabindex="0"><table>
<thead>{_row("th", [*names, "seeds", "diverged"])}</thead>
<tbody>
{"".join(rows)}</tbody>
</table></div>
"""


def origin(results: Mapping[str, Any]) -> str:
    """Returns how published results were measured."""
    statuses, seconds = [run["status"] for run in results["runs"]], results["seconds"]
    time = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
    versions = _listed(results["versions"])
    count = f"{len(statuses)}, of which {statuses.count('diverged')} diverged"
    facts = {
        "Runs": [f"{count}; {time} in all"],
        "Device": _listed(results["device"]),
        "Commit": [commit or "unknown" for commit in _listed(results["commit"])],
        "Versions": [", ".join(map(" ".join, found.items())) for found in versions],
    }
    pairs = [f"<dt>{k}</dt><dd>{escape('; '.join(v))}</dd>\n" for k, v in facts.items()]
    return f"<p>Measured by</p>\n{pre(results['command'])}<dl>\n{''.join(pairs)}</dl>\n"


def prose(doc: str) -> str:
    """Returns a docstring's paragraphs; those that are indented keep their lines."""
    return "".join(
        pre(_unjoined(block)) if block.startswith(" ") else f"<p>{inline(block)}</p>\n"
        for block in re.split(r"\n\s*\n", doc.rstrip().lstrip("\n"))
        if block
    )


def inline(words: str) -> str:
    """Returns the text of a paragraph, with its code and its papers marked up."""
    escaped = escape(" ".join(words.split()))
    coded = re.sub(r"`+([^`]+)`+", r"<code>\1</code>", escaped)
    link = r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>'
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", link, coded)


def pre(code: str) -> str:
    """Returns lines as they are; where they are too long, the keyboard scrolls too."""
    return f'<pre tabindex="0"><code>{escape(code)}</code></pre>\n'


def _unjoined(block: str) -> str:
    """Breaks the lines that a backslash in a docstring joined, indentation and all."""
    return re.sub(r"(?<=\S) {6,}(?=\S)", " \\\n    ", textwrap.dedent(block))


def _row(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in cells)}</tr>\n"


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_value, value))
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _listed(value: Any) -> list[Any]:
    """Returns a list: publishing makes one of what differs between runs."""
    return value if isinstance(value, list) else [value]


if __name__ == "__main__":
    app.run(main)
    sys.exit()
