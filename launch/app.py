"""The entry of every command: parses flags, tells a user's mistake in one sentence.

Exit codes: 0 done, 1 failed (a diverged or failed run), 2 a mistake on the command
line or in a file it names, 75 preempted with everything saved, 76 locked by another
process.
"""

import logging
import sys
from collections.abc import Callable, Sequence

from absl import app, flags

from dl_core.errors import UserError

DONE, FAILED, MISUSED, PREEMPTED, LOCKED = 0, 1, 2, 75, 76


def fail(sentence: object, code: int = MISUSED) -> None:
    """Prints one sentence on standard error and leaves with the exit code `code`."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(code)


def run(
    main: Callable[[Sequence[str]], int | None],
    define_flags: Callable[[Sequence[str]], None] = lambda argv: None,
) -> None:
    """Runs `main(positional arguments)` under absl; its result is the exit code.

    Args:
      main: called with the arguments that are not flags.
      define_flags: called with the raw command line before it is parsed, to define
        flags that depend on it (those of an experiment's config).
    """

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            define_flags(argv)
            return flags.FLAGS(argv)
        except (flags.Error, UserError) as error:
            fail(error)

    def guarded(argv: Sequence[str]) -> int | None:
        # The libraries' running commentary is not the user's log.
        for library in ("absl", "jax"):
            logging.getLogger(library).setLevel(logging.ERROR)
        try:
            return main(argv[1:])
        except UserError as error:
            fail(error)

    app.run(guarded, flags_parser=parse)
