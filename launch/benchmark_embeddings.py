"""The benchmark of word embeddings: words a second of CBOW, ours over gensim's.

Both read the embedded novels in sentences, with windows of random radius up to five,
five negatives a word, 100 numbers in a vector, frequent words dropped above 1e-3; words
a second count those of the text, dropped ones too. Gensim has two workers. Ours reads
blocks, and returns the exact loss of each; the negatives are each word's own, or shared
by 16 to 64 words in a row, or by a block, each weighing so much as to make five. As
sharing and blocks change what is learned, the loss at the end is printed beside the
speed. Gensim comes with the test tools (`pip install -e .[test]`).
"""

import functools
import logging
import time
from collections.abc import Callable

import jax
import numpy as np

from dl_core.data.novels import Blocks, Novels, NovelsConfig, read_novels
from dl_core.errors import UserError
from dl_core.ops import embeddings
from launch.benchmark_conv import spread

DIMENSION, WINDOW, NEGATIVES, SAMPLE, RATE = 100, 5, 5, 1e-3, 0.025
TEXT = NovelsConfig(vocabulary=0)
FORMS = {
    "own negatives": (4_096, 1, NEGATIVES),
    "5 shared by 16": (4_096, 16, 5),
    "5 shared by 64": (4_096, 64, 5),
    "5 shared by 32, long blocks": (8_192, 32, 5),
    "64 shared by the block": (4_096, 4_096, 64),
}
"""Words in a block, words in a row that share negatives, and how many these are."""


def run(repeats: int) -> None:
    """Prints words a second, and their ratios with the range over the measurements.

    Args:
      repeats: measurements of each, an epoch each.

    Raises:
      UserError: if gensim is not installed.
    """
    try:
        import gensim  # noqa: F401
    except ImportError:
        raise UserError(
            "launch.benchmark embeddings compares with gensim, which is not installed: "
            "install the test tools (pip install -e .[test])"
        ) from None
    novels = read_novels(TEXT)
    theirs = gensims(novels, workers=2)
    ours = {name: our_epoch(novels, *form) for name, form in FORMS.items()}
    for epoch in (theirs, *ours.values()):
        epoch()
    speeds: dict[str, list[float]] = {name: [] for name in ("gensim", *ours)}
    losses = {}
    for _ in range(repeats):
        for name, epoch in {"gensim": theirs, **ours}.items():
            start = time.perf_counter()
            losses[name] = epoch()
            seconds = time.perf_counter() - start
            speeds[name].append(len(novels.words["train"]) / seconds / 1e3)
    print(f"CBOW, {len(novels.vocabulary):,} words, {DIMENSION} numbers in a vector")
    for name, values in speeds.items():
        print(f"    {name} {spread(values, 'thousand words/s')}")
        if name in ours:
            print(f"        over gensim's {spread(values, over=speeds['gensim'])}")
            print(f"        loss in the last epoch {losses[name]:.3f} a word")


def gensims(novels: Novels, workers: int) -> Callable[[], None]:
    """Returns a call that trains gensim's model for one more epoch."""
    from gensim.models import Word2Vec

    logging.getLogger("gensim").setLevel(logging.WARNING)
    words, numbers = novels.words["train"], novels.sentences["train"]
    vocabulary = np.array(novels.vocabulary, object)
    borders = np.flatnonzero(np.diff(numbers)) + 1
    sentences = [vocabulary[part].tolist() for part in np.split(words, borders)]
    model = Word2Vec(
        vector_size=DIMENSION,
        window=WINDOW,
        negative=NEGATIVES,
        sample=SAMPLE,
        min_count=1,
        workers=workers,
    )
    model.build_vocab(sentences)

    def epoch() -> None:
        # A constant step size, as ours has: by default it falls linearly, from 0.025
        # to 1e-4, over the epochs of a call, which here is a single one.
        model.train(
            sentences,
            total_examples=len(sentences),
            epochs=1,
            start_alpha=RATE,
            end_alpha=RATE,
        )

    return epoch


def our_epoch(novels: Novels, size: int, group: int, drawn: int) -> Callable[[], float]:
    """Returns a call that trains for one more epoch, and returns its mean loss.

    Args:
      novels: the text.
      size: words in a block.
      group: words in a row that share negatives; 1 for each word's own.
      drawn: negatives of a group.
    """
    keep = embeddings.keep_probability(novels.counts, SAMPLE)
    words = novels.words["train"]
    blocks = Blocks(words, novels.sentences["train"], keep, size, WINDOW)
    sampler = embeddings.Sampler.of(embeddings.noise(novels.counts))
    steps = round(keep[words].sum() / size)
    key = jax.random.key(0)
    # Negatives of each target, of the block, or of each group.
    shape = {1: (size, 1, drawn), size: (drawn,)}.get(group, (size // group, drawn))
    params = embeddings.initial(key, len(novels.vocabulary), DIMENSION)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(params, tokens, sentences, radius, number):
        mask = embeddings.in_window(sentences, radius)
        wrong = sampler.draw(jax.random.fold_in(key, number), shape)
        return embeddings.descend_negative(
            params, tokens, mask, wrong, RATE, negatives=NEGATIVES
        )

    done = 0

    def epoch() -> float:
        nonlocal params, done
        losses = []
        for number in range(done, done + steps):
            block = {k: v[0] for k, v in blocks.train_inputs(0, number, 1).items()}
            params, loss = step(params, **block, number=number)
            losses.append(loss)
        done += steps
        return float(np.mean(jax.device_get(losses)))

    return epoch
