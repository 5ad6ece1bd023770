"""Translates sentences with a trained run: python -m launch.translate --run=DIR

`--run` is the folder of a run of attention.translation; `--text` a sentence, else every
line of the standard input is one. A translation is printed in a line of its own; words
that the run's vocabulary does not have are counted on standard error, and so are
translations that were cut before their end. `--beam=5` is a beam search of that width,
1 greedy; `--length_penalty` and `--coverage_penalty` are those of its scores.

    python -m launch.run --experiment=attention.translation
    python -m launch.translate --run=runs/attention.translation/runs/default \
        --text='Where is the station?' --beam=5
"""

import pathlib
import sys
from typing import Any

from absl import flags

from dl_core.errors import UserError
from launch import app, trained
from launch.execute import say

FLAGS = flags.FLAGS
flags.DEFINE_string("run", None, "Folder of a trained run of attention.translation.")
flags.DEFINE_string("text", None, "The sentence; without it, the lines of the input.")
flags.DEFINE_integer("beam", 1, "Width of the beam search; 1 is greedy.", lower_bound=1)
flags.DEFINE_float(
    "length_penalty",
    0.6,
    "Of a beam search: the larger, the longer the translations.",
    lower_bound=0,
)
flags.DEFINE_float(
    "coverage_penalty",
    0.0,
    "Of a beam search: the larger, the less of the sentence is left out.",
    lower_bound=0,
)

_EXPERIMENT = "attention.translation"


def main(args: list[str]) -> None:
    """Translates what the flags or the standard input say."""
    if args:
        raise UserError(f"{args[0]!r} is not a flag; see --help")
    if not FLAGS.run:
        raise UserError("--run is missing: the folder of a trained run")
    for name in ("length_penalty", "coverage_penalty"):
        if FLAGS[name].present and FLAGS.beam == 1:
            raise UserError(
                f"--{name}={FLAGS[name].value:g} is of a beam search: give --beam=5 or "
                "another width above 1, too"
            )
    folder = pathlib.Path(FLAGS.run)
    config = read_config(folder)
    lines = read_lines(FLAGS.text)
    known = read_vocabularies(folder)
    state = restore(folder, config, known)
    from experiments.attention import translation

    found = translation.translate(
        config,
        state,
        known,
        lines,
        FLAGS.beam,
        length_penalty=FLAGS.length_penalty,
        coverage_penalty=FLAGS.coverage_penalty,
    )
    for each in found:
        print(each.text)
    if cut := sum(not each.ended for each in found):
        plural, verb = ("s", "were") if cut > 1 else ("", "was")
        longest = config.data.longest
        say(f"{cut} translation{plural} {verb} cut at {longest} tokens, without an end")
    if unknown := [word for each in found for word in each.unknown]:
        plural = "s" if len(unknown) > 1 else ""
        say(f"{len(unknown)} unknown word{plural}: {', '.join(unknown)}")


def read_lines(text: str | None) -> list[str]:
    """Returns the sentences: the one that is given, or those of the standard input.

    Raises:
      UserError: if there is none, or they are not text in UTF-8.
    """
    if text is not None:
        if not _is_text(text):
            raise UserError(f"--text={text!a}: expected text in UTF-8")
        return [text]
    content = sys.stdin.buffer.read()
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(
            f"the standard input: expected text in UTF-8 ({error.reason} at byte "
            f"{error.start + 1:,})"
        ) from None
    if not lines:
        raise UserError("there is no sentence: give --text, or lines of input")
    return lines


def _is_text(text: str) -> bool:
    # What a shell gives that is not in UTF-8 are halves of surrogate pairs here.
    return not any("\ud800" <= character <= "\udfff" for character in text)


def read_config(folder: pathlib.Path) -> Any:
    """Returns the config of a run.

    Raises:
      UserError: if there is no such run, it is damaged, or of another experiment.
    """

    def check(name: str) -> None:
        if name != _EXPERIMENT:
            raise UserError(f"--run={folder} is of {name}, not of {_EXPERIMENT}")

    _, config = trained.read_config(folder, check)
    return config


def read_vocabularies(folder: pathlib.Path) -> Any:
    """Returns the vocabularies of a run.

    Raises:
      UserError: if a file is missing or damaged.
    """
    from dl_core.data.subwords import Vocabulary
    from dl_core.models.translation import Vocabularies

    found = []
    for side in Vocabularies._fields:
        file = folder / "assets" / f"{side}.vocabulary"
        try:
            found.append(Vocabulary.from_bytes(file.read_bytes()))
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise UserError(f"{file} is damaged: {error}") from None
    return Vocabularies(*found)


def restore(folder: pathlib.Path, config: Any, known: Any) -> Any:
    """Returns the state of a run's newest checkpoint.

    Raises:
      UserError: if there is none, it cannot be read, or the vocabularies are of another
        run.
    """
    import jax

    from dl_core.config import to_arrays
    from dl_core.train.checkpoints import OtherStateError
    from experiments.attention import translation

    def shapes_of(step: int) -> Any:
        return jax.eval_shape(
            lambda key: translation.begin(to_arrays(config), key, known),
            jax.random.key(0),
        )

    mark = known.fingerprints()
    try:
        step, state = trained.restore(folder, shapes_of)
    except OtherStateError:
        sizes = f"{len(known.source):,} and {len(known.target):,} tokens"
        raise UserError(
            f"{folder}: its checkpoint is of another network; do the vocabularies in "
            f"assets, of {sizes}, belong to it?"
        ) from None
    for side, of_state in state.collections["vocabularies"].items():
        if int(of_state) != mark[side]:
            raise UserError(
                f"{folder / 'assets' / side}.vocabulary does not belong to the "
                f"checkpoint of step {step}, which was trained with another one"
            )
    return state


if __name__ == "__main__":
    app.run(main)
    sys.exit()
