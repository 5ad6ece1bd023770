"""Numbers of points as they are written on the command line: 0-3,7."""

import re
from collections.abc import Iterable, Sequence

from dl_core.errors import UserError


def parse_numbers(flag: str, text: str, known: Sequence[int]) -> list[int]:
    """Reads "0-3,7" as the numbers of points, in order.

    Args:
      flag: whose value it is.
      text: the value.
      known: the numbers that there are.

    Raises:
      UserError: for what is no list of numbers, or a number that is not known.
    """
    found = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        numbers = range(int(match[1]), int(match[2] or match[1]) + 1) if match else ()
        if not numbers:
            raise UserError(f"{flag}={text}: expected numbers of points, such as 0-3,7")
        for number in numbers:
            if number not in known:
                raise UserError(
                    f"{flag}={text}: there is no point {number}; they are "
                    f"{numbers_text(known)}"
                )
            found.add(number)
    return sorted(found)


def numbers_text(numbers: Iterable[int]) -> str:
    """Writes numbers as `parse_numbers` reads them: "0-3,7"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)
