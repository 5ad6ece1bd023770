"""The page of `python -m launch.gallery`, made from results that are made up here."""

import base64
import html.parser
import itertools
import json
import re
import subprocess
import sys
import types

import pytest

from dl_core.config import to_dict
from dl_core.errors import UserError
from launch import gallery, registry

NAME, OTHER = "classification.batch_norm", "sequences.copy_memory"
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAA"
    "AABJRU5ErkJggg=="
)
HOSTILE = "</pre><script>alert('&\"')</script>"
_VOID = {"img", "meta", "wbr"}


class Parsed(html.parser.HTMLParser):
    """A page's elements; fails where they are not closed in the order they opened."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, attribute):
        return [a[attribute] for _, a in self.elements if attribute in a]


def results(metrics=lambda number: 0.5):
    """Returns the results of a sweep as `launch.publish` writes them."""
    experiment = registry.load(NAME)
    (sweep,) = experiment.sweeps
    runs = [
        {
            "changes": dict(point),
            "status": "done",
            "step": 20,
            "seconds": 1.5,
            "metrics": {experiment.main_metric: metrics(number)},
        }
        for number, point in enumerate(experiment.sweeps[sweep])
    ]
    return {
        "experiment": NAME,
        "sweep": sweep,
        "command": f"python -m launch.sweep --experiment={NAME} --sweep={sweep}",
        "base": to_dict(experiment.preset("smoke")),
        "commit": "0123abc",
        "versions": {"python": "3.11.1", "jax": "0.10.2"},
        "device": "1 × CPU",
        "seconds": 36.0,
        "runs": runs,
    }


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Publishes results, with all figures of their experiment, in a scratch folder."""

    def publish(found, *, figures=True):
        topic, module = NAME.split(".")
        (tmp_path / topic).mkdir()
        path = tmp_path / topic / f"{module}.{found['sweep']}.json"
        path.write_text(json.dumps(found))
        for key in registry.load(NAME).figures if figures else ():
            (tmp_path / topic / f"{module}.{key}.png").write_bytes(PNG)

    monkeypatch.setattr(
        registry, "results_folder", lambda name: tmp_path / name.split(".")[0]
    )
    return publish


def text_of(page):
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def test_page_has_every_experiment_and_loads_nothing(published):
    published(results())
    page = gallery.page()
    parsed = Parsed(page)
    ids = parsed.all("id")
    assert len(ids) == len(set(ids))
    assert set(registry.names()) <= set(ids)
    assert {name.split(".")[0] for name in registry.names()} <= set(ids)
    for name in registry.names():
        assert registry.outline(name).topic.replace("`", "") in text_of(page)
    for tag, attributes in parsed.elements:
        link = attributes.get("href", "")
        assert tag not in ("script", "link", "iframe", "object")
        assert not link or tag == "a"
        assert not link.startswith("#") or link[1:] in ids
    images = parsed.all("src")
    assert len(images) == len(registry.load(NAME).figures)
    assert all(image.startswith("data:image/png;base64,") for image in images)
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert page == gallery.page()


def test_headings_are_in_order(published):
    published(results())
    levels = [int(t[1]) for t, _ in Parsed(gallery.page()).elements if t[:-1] == "h"]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_figures_have_their_image_caption_and_alternative(published):
    published(results())
    article = gallery.article(NAME)
    images = [a for tag, a in Parsed(article).elements if tag == "img"]
    figures = registry.load(NAME).figures
    assert len(images) == len(figures)
    for image, (key, function) in zip(images, figures.items(), strict=True):
        assert base64.b64decode(image["src"].partition(",")[2]) == PNG
        caption = " ".join(function.__doc__.split())
        assert image["alt"] == f"{NAME}, {key}: {caption}"
        assert html.escape(caption) in article[article.index("<figcaption>") :]


def test_table_groups_seeds_and_counts_what_diverged():
    found = results(lambda number: number / 100)
    found["runs"][1]["status"] = "diverged"
    found["runs"][1]["metrics"] = {"test/accuracy": float("nan")}
    table = gallery.table(found, "test/accuracy")
    Parsed(table)
    rows = re.findall("<tr>(.*?)</tr>", table)
    cells = [re.findall("<td>(.*?)</td>", row) for row in rows]
    assert text_of(rows[0].replace("<wbr>", "")) == (
        "model.normalization optimizer.learning_rate test/accuracy seeds diverged"
    )
    assert cells[1] == ["none", "0.1", "0.010 ± 0.014", "3", "1"]
    assert cells[2] == ["none", "1", "0.040 ± 0.010", "3", "0"]
    assert len(rows) == 1 + len(found["runs"]) // 3


def test_table_of_one_point_of_which_all_runs_diverged():
    found = results()
    found["runs"] = [
        {**run, "status": "diverged", "changes": {"seed": seed}}
        for seed, run in enumerate(found["runs"][:2])
    ]
    table = gallery.table(found, "test/accuracy")
    assert re.findall("<td>(.*?)</td>", table) == ["–", "2", "2"]


def test_origin_tells_what_the_runs_share_and_where_they_differ():
    found = results()
    found |= {"commit": ["0123abc", "4567def+"], "seconds": 600.0}
    found["runs"][0]["status"] = "diverged"
    told = text_of(gallery.origin(found))
    count = len(found["runs"])
    assert found["command"] in told
    assert f"Runs {count}, of which 1 diverged; 10 min in all" in told
    assert "Device 1 × CPU Commit 0123abc; 4567def+" in told
    assert "Versions python 3.11.1, jax 0.10.2" in told
    assert "Commit unknown" in text_of(gallery.origin(found | {"commit": None}))


def test_what_a_file_holds_is_never_markup(published):
    found = results()
    found |= {name: HOSTILE for name in ("command", "device", "commit")}
    found["versions"] = {HOSTILE: HOSTILE}
    for run in found["runs"]:
        run["changes"] |= {"model.normalization": HOSTILE, HOSTILE: [HOSTILE]}
    published(found)
    article = gallery.article(NAME)
    Parsed(article)
    assert "<script" not in article
    assert text_of(article).count("<script>") >= 7


def test_an_experiment_without_results_says_so(published):
    published(results())
    article = gallery.article(OTHER)
    for sweep in registry.load(OTHER).sweeps:
        command = f"python -m launch.sweep --experiment={OTHER} --sweep={sweep}"
        assert f"Nothing published yet; this measures it: {command}" in text_of(article)
    assert "<table>" not in article
    assert "<img" not in article
    contents = gallery.contents("sequences", [OTHER])
    assert "nothing published yet" in contents
    assert "nothing published yet" not in gallery.contents("classification", [NAME])


def test_results_without_figures(published):
    published(results(), figures=False)
    article = gallery.article(NAME)
    assert "<table>" in article
    assert "<img" not in article


def test_prose():
    doc = """
Of `code`, A < B, in
arXiv:1803.01271.

    python -m x --a  \\
        --b

    python -m y         --c=d
"""
    assert gallery.prose(doc) == (
        "<p>Of <code>code</code>, A &lt; B, in "
        '<a href="https://arxiv.org/abs/1803.01271">arXiv:1803.01271</a>.</p>\n'
        '<pre tabindex="0"><code>python -m x --a  \\\n    --b</code></pre>\n'
        '<pre tabindex="0"><code>python -m y \\\n    --c=d</code></pre>\n'
    )
    assert gallery.prose("") == ""


def test_the_file_is_written(tmp_path, monkeypatch, capsys):
    path = tmp_path / "new" / "index.html"
    monkeypatch.setattr(gallery, "page", lambda: "the page")
    monkeypatch.setattr(gallery, "FLAGS", types.SimpleNamespace(output=str(path)))
    assert gallery.main([]) == 0
    assert path.read_text() == "the page"
    assert capsys.readouterr().out == f"{path}\n"
    gallery.FLAGS.output = str(tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        gallery.main([])
    with pytest.raises(UserError, match="is not a flag"):
        gallery.main(["x"])


def test_help_does_not_import_jax():
    code = (
        "import runpy, sys; sys.argv = ['gallery', '--help']\n"
        "try: runpy.run_module('launch.gallery', run_name='__main__', alter_sys=True)\n"
        "finally: assert 'jax' not in sys.modules"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "--output" in found.stdout
    assert not found.stderr
