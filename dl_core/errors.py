"""A user's mistake, told in one sentence instead of a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake of the user's; its text is one sentence that says how to mend it."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the valid name nearest to `name`, or ""."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
    return f"; did you mean {found[0]!r}?" if found else ""
