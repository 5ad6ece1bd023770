"""The entry of every command: parses flags, tells a user's mistake in one sentence.

Exit codes: 0 done, 1 failed (a diverged or failed run), 2 a mistake on the command
line or in a file it names, 75 preempted with everything saved, 76 locked by another
process.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence

from absl import app, flags

from dl_core.errors import UserError

DONE, FAILED, MISUSED, PREEMPTED, LOCKED = 0, 1, 2, 75, 76


def fail(sentence: object, code: int = MISUSED) -> None:
    """Prints one sentence on standard error and leaves with the exit code `code`."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(code)


def _report(failure: threading.ExceptHookArgs) -> None:
    """Reports what ended a thread, unless the main thread will be told of it anyway."""
    writers = ("orbax", "tensorboardX")
    if not type(failure.thread).__module__.startswith(writers):
        threading.__excepthook__(failure)


def _report_error(kind, error, trace) -> None:
    """Reports an error, but for a failed save's reads that outlive their event loop."""
    if "Event loop is closed" not in str(error):
        sys.__excepthook__(kind, error, trace)


def _report_unraisable(failure) -> None:
    """Reports what cannot be raised, with the same exception."""
    if "Event loop is closed" not in str(failure.exc_value):
        sys.__unraisablehook__(failure)


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

    threading.excepthook = _report
    sys.excepthook, sys.unraisablehook = _report_error, _report_unraisable

    def guarded(argv: Sequence[str]) -> int | None:
        # The libraries' running commentary is not the user's log.
        for library in ("absl", "jax"):
            logging.getLogger(library).setLevel(logging.CRITICAL)
        try:
            code = main(argv[1:])
            sys.stdout.flush()
            return code
        except UserError as error:
            fail(error)
        except BrokenPipeError:
            # The reader has left (`… | head`); nothing is left to flush to.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    try:
        app.run(guarded, flags_parser=parse)
    except KeyboardInterrupt:
        fail("interrupted", 128 + signal.SIGINT)
