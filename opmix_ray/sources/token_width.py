"""How wide the ids of a raw file without a header are: only what its bytes prove.

    dtype = raw_dtype("ids.bin", wanted=None, vocabulary=100_278, key="data.domains.web")

Ids of 32 bits read as 16 are ids and zeros in turn, which look like text of a small vocabulary; ids of 16 bits read as
32 lie outside every vocabulary. A file of which both readings make sense, or neither the one asked for, is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opmix_ray.errors import UserError
from opmix_ray.sources.files import filesystem, reading

_LARGEST = 1 << 20  # ids of any vocabulary lie below; used where the tokenizer is not known
_ENOUGH, _ENOUGH_BLIND = 8, 32  # ids other than 0 that prove a width, with and without a known vocabulary
_FEW = 1024  # ids of a small alphabet, such as characters
_LOOKED_AT = 1 << 26  # bytes of a file
_BLOCK = 1 << 22
_WIDTHS = (2, 4, 8)


@dataclass
class _Reading:
    """A file read at one width: whether all ids lie in the vocabulary, how many are not 0, and the largest."""

    fits: bool
    told: int = 0
    largest: int = 0


def raw_dtype(
    file: str, *, wanted: str | None, vocabulary: int | None, key: str
) -> np.dtype[np.unsignedinteger]:
    """The type of a raw file's ids.

    Args:
        file: path or URI.
        wanted: `uint16` or `uint32` as configured; None: what the file shows.
        vocabulary: size of the tokenizer's; None where it is not known.
        key: configuration key of the source, for errors.

    Raises:
        UserError: the file contradicts `wanted`, shows no width, or holds 16-bit ids for a larger vocabulary.
    """
    with reading(file, f"{key}.path"):
        size, read = _read(file, vocabulary or _LARGEST)
    if read is None:  # it has a header
        return np.dtype("<u2")
    enough = _ENOUGH if vocabulary else _ENOUGH_BLIND
    proved = next((width for width in (8, 4) if read[width].fits and read[width].told >= enough), None)
    if vocabulary is None and proved == 4 and read[4].largest >= 1 << 16 and read[2].largest < _FEW:
        proved = None  # two ids of a small alphabet make one of 32 bits
    if wanted is not None:
        width = int(wanted.removeprefix("uint")) // 8
        if proved is not None and proved > width:
            raise _contradiction(file, key, wanted, proved)
        if width == 4 and vocabulary and size % 4 == 0 and not read[4].fits and read[2].fits:
            raise _contradiction(file, key, wanted, 2)
        return np.dtype(f"<u{width}")
    if proved is not None:
        return np.dtype(f"<u{proved}")
    if vocabulary is not None and read[4].fits and read[2].fits and size:
        raise UserError(
            "may hold ids of 16 or of 32 bits: it is too short to tell", file=file, key=f"{key}.token_dtype",
            remedy="set it to uint16 or uint32",
        )  # fmt: skip
    if vocabulary is not None and vocabulary > 1 << 16 and read[2].fits and size:
        raise UserError(
            f"holds no ids of 32 bits, and those of 16 bits cannot name all of the vocabulary of {vocabulary:,}",
            file=file, key=f"{key}.token_dtype",
            remedy="name the tokenizer that the data were made with, or set it to uint16 if the ids are right",
        )  # fmt: skip
    return np.dtype("<u2")


def _contradiction(file: str, key: str, wanted: str, width: int) -> UserError:
    return UserError(
        f"holds ids of {8 * width} bits", file=file, key=f"{key}.token_dtype", value=wanted,
        remedy="leave it out, or set it to the type the file was written with",
    )  # fmt: skip


def _read(file: str, vocabulary: int) -> tuple[int, dict[int, _Reading] | None]:
    system, inner = filesystem(file)
    with system.open_input_file(inner) as stream:
        size = int(stream.size())
        if stream.read(6) == b"\x93NUMPY":
            return size, None
        stream.seek(0)
        read = {width: _Reading(size % width == 0) for width in _WIDTHS}
        left = min(size, _LOOKED_AT) // 8 * 8 or size
        while left and (read[4].fits or read[8].fits):
            data = stream.read(min(left, _BLOCK))
            left -= len(data)
            for width, found in read.items():
                if found.fits:
                    ids = np.frombuffer(data, f"<u{width}")
                    found.largest = max(found.largest, int(ids.max(initial=0)))
                    found.fits = found.largest < vocabulary
                    found.told += int(np.count_nonzero(ids))
    return size, read
