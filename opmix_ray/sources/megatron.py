"""Token ids in binary files: Megatron's indexed data sets, and how wide the ids of a raw file without a header are.

The index is, in little endian: the magic `MMIDIDX\\0\\0`, a version (uint64, 1), the type code of the ids (uint8), the
numbers S of sequences and D + 1 of document marks (uint64 each), then S lengths (int32), S byte offsets into the `.bin`
(int64) and D + 1 marks (int64): document i is the sequences from mark i up to mark i + 1
(`megatron/core/datasets/indexed_dataset.py` of Megatron-LM).

    dtype = raw_dtype("ids.bin", wanted=None, vocabulary=100_278, key="data.domains.web")

Ids of 32 bits read as 16 are ids and zeros in turn, which look like text of a small vocabulary; ids of 16 bits read as
32 lie outside every vocabulary. Most ids decide, not all: one that is too large, a label of -100 or a file that is cut
off does not make a file narrower, and is named when the ids are read. A file of which both readings make sense, or
neither the one asked for, or one that holds no ids at all, is refused.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from tokenize import TokenError
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs as pafs

from opmix_ray.errors import UserError
from opmix_ray.paths import BIN, IDX, is_uri
from opmix_ray.sources.files import InputFile, filesystem, reading
from opmix_ray.sources.lines import HEAD, contents, is_text

_MAGIC, _LEGACY = b"MMIDIDX\x00\x00", b"TNTIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # 6 and 7 are floats
_TOKENS = 1 << 24  # ids read at a time, unless one document has more


def sibling(path: str, ending: str) -> str:
    """The file of the other ending for a `.bin`, an `.idx` or their common prefix; keeps a URI's query."""
    head, mark, query = path.partition("?") if is_uri(path) else (path, "", "")
    for known in (BIN, IDX):
        if head.lower().endswith(known):
            ending = ending.upper() if head.endswith(known.upper()) else ending
            head = head[: -len(known)]
    return head + ending + mark + query


def is_indexed(path: str) -> bool:
    """Whether a file is a `.bin` with an index beside it."""
    plain = path.partition("?")[0] if is_uri(path) else path
    return plain.lower().endswith(BIN) and find(path) is not None


def is_index(path: str) -> bool:
    """Whether a file is called like an index."""
    return (path.partition("?")[0] if is_uri(path) else path).lower().endswith(IDX)


def find(path: str, ending: str = IDX) -> InputFile | None:
    """The index, or the `.bin`, that belongs to a `.bin` file or a prefix, if it is there."""
    name = sibling(path, ending)
    system, inner = filesystem(name)
    info = system.get_file_info(inner)
    return InputFile(name, info.size or 0, info.mtime_ns or 0) if info.type == pafs.FileType.File else None


def find_prefixed(path: str) -> InputFile | None:
    """The `.bin` file for an index, or for a prefix that nothing else has as its name, where both files are there."""
    if "*" in path or path.lower().endswith(BIN):
        return None
    system, inner = filesystem(path)
    found = system.get_file_info(inner).type != pafs.FileType.NotFound
    if found != is_index(path) or find(path) is None:
        return None
    return find(path, BIN)


def read_index(path: str) -> tuple[np.dtype[Any], np.ndarray]:
    """The type of the ids of a `.bin` file, and where its documents end.

    Returns:
        The type, and int64 of shape (D,): ids before the end of each document.

    Raises:
        OSError, ValueError: there is no index, it is not of this kind, or the `.bin` has not the ids that it names.
    """
    system, inner = filesystem(sibling(path, IDX))
    with system.open_input_stream(inner, compression=None) as stream:
        data = stream.read()
    if data.startswith(_LEGACY):
        raise ValueError("the index is of an older kind; preprocess the data with --dataset-impl mmap")
    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        raise ValueError("the .idx beside it is not a Megatron index")
    _, version, code, sequences, marks = _HEADER.unpack_from(data)
    if version != 1:
        raise ValueError(f"its index has version {version}, not 1")
    if code not in _DTYPES:
        raise ValueError(f"its index says type {code}, which is not one of token ids")
    if len(data) < _HEADER.size + 12 * sequences + 8 * marks:
        raise ValueError("its index is cut off")
    dtype = np.dtype(_DTYPES[code])
    lengths = np.frombuffer(data, "<i4", sequences, _HEADER.size)
    offsets = np.frombuffer(data, "<i8", sequences, _HEADER.size + 4 * sequences)
    first = np.frombuffer(data, "<i8", marks, _HEADER.size + 12 * sequences)
    ends = np.cumsum(lengths, dtype=np.int64)
    if (lengths < 0).any() or (offsets != (ends - lengths) * dtype.itemsize).any():
        raise ValueError("its index does not name sequences that lie one after the other")
    bounds: np.ndarray = np.append(first, sequences)
    if bounds[0] != 0 or (np.diff(bounds) < 0).any():
        raise ValueError("the documents of its index do not cover its sequences")
    need = int(lengths.sum(dtype=np.int64)) * dtype.itemsize
    size = (find(path, BIN) or InputFile(path, 0, 0)).size
    if size != need:
        raise ValueError(f"holds {size} bytes where its index names {need}")
    return dtype, np.append(0, ends)[np.unique(bounds)][1:]


def documents(path: str, check: Callable[[np.dtype[Any]], None] | None = None) -> Iterator[np.ndarray]:
    """Ids of every document of a `.bin` file in order, of shape (n,); end-of-text ids are left in.

    Args:
        path: of the file.
        check: is told the type of the ids before any is read, and may raise.

    Raises:
        OSError, ValueError: see `read_index`.
    """
    dtype, ends = read_index(path)
    if check is not None:
        check(dtype)
    system, inner = filesystem(path)
    with system.open_input_file(inner) as stream:
        at = document = 0
        while document < len(ends):
            last = max(document + 1, int(np.searchsorted(ends, at + _TOKENS, side="right")))
            stop = int(ends[last - 1])
            ids = np.frombuffer(stream.read((stop - at) * dtype.itemsize), dtype)
            yield from np.split(ids, ends[document : last - 1] - at)
            at, document = stop, last


_LARGEST = 1 << 20  # ids of any vocabulary lie below; used where the tokenizer is not known
_ENOUGH, _ENOUGH_BLIND = 8, 32  # ids other than 0 that prove a width, with and without a known vocabulary
_MOST = 0.5  # of the ids other than 0 that have to lie in the vocabulary
_APART = 0.6  # how far the halves of ids of 32 bits are from being ids of 16 bits each (total variation)
_TOLD = 1 << 16  # ids other than 0 after which no more are looked at
_LOOKED_AT = 1 << 26  # bytes of a file
_BLOCK = 1 << 20
_WIDTHS = (2, 4, 8)
_LLM_C = {20240520, 20240801}  # first number in the header of llm.c's data files
_BYTES = 1024  # of a file that say whether they are low and high bytes of ids
_SAME, _EVEN, _ORDERED = (
    0.15,
    7.5,
    0.5,
)  # distance of the two, bits of random ones, bits that high ones have less


@dataclass
class _Reading:
    """A file read as one type: numbers that are not 0, and how many of these are ids of the vocabulary."""

    told: int = 0
    fit: int = 0

    @property
    def fits(self) -> bool:
        """Whether most of the numbers are ids."""
        return self.fit >= _MOST * self.told

    def add(self, numbers: np.ndarray, most: int) -> None:
        """Count the numbers of a block."""
        self.told += int(np.count_nonzero(numbers))
        with np.errstate(invalid="ignore"):
            inside = (numbers > 0) & (numbers < most)
            if numbers.dtype.kind == "f":
                inside &= numbers == np.floor(numbers)
        self.fit += int(np.count_nonzero(inside))


@dataclass
class _Found:
    """What a file's bytes are, read in every way."""

    size: int
    head: bytes = b""
    header: np.dtype[Any] | None = None  # what NumPy says
    read: dict[str, _Reading] = field(default_factory=dict)
    apart: float = 0.0
    pairs: tuple[float, float, float, int] = (
        0.0,
        0.0,
        1.0,
        0,
    )  # bits of low and high bytes, distance, number


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
        UserError: the file contradicts `wanted`, shows no width, holds 16-bit ids for a larger vocabulary, or no ids.
    """
    path = key if key.startswith("--") else f"{key}.path"
    with reading(file, path):
        found = _look(file, vocabulary or _LARGEST)
    if found.header is not None:
        refuse_narrow(found.header, file, wanted=wanted, vocabulary=vocabulary, key=key)
        return np.dtype("<u2")
    read, enough = found.read, _ENOUGH if vocabulary else _ENOUGH_BLIND
    proved = next(
        (w for w in (8, 4) if _proves(read[f"<u{w}"], enough) and (w == 8 or found.apart >= _APART)), None
    )
    if what := _nature(found, proved, enough, wanted):
        raise UserError(f"holds {what[0]}", file=file, key=path, remedy=what[1])
    if wanted is not None:
        width = int(wanted.removeprefix("uint")) // 8
        if proved is not None and proved > width:
            raise _contradiction(file, key, wanted, proved)
        if width == 4 and vocabulary and _proves(read["<u2"], enough) and not read["<u4"].fits:
            raise _contradiction(file, key, wanted, 2)
        return np.dtype(f"<u{width}")
    if proved is not None:
        return np.dtype(f"<u{proved}")
    if vocabulary is not None and read["<u4"].told < enough and read["<u4"].fits and found.size:
        raise UserError(
            "may hold ids of 16 or of 32 bits: it is too short to tell", file=file, key=f"{key}.token_dtype",
            remedy="set it to uint16 or uint32",
        )  # fmt: skip
    if vocabulary is not None and vocabulary > 1 << 16 and found.size:
        raise UserError(
            f"holds no ids of 32 bits, and those of 16 bits cannot name all of the vocabulary of {vocabulary:,}",
            file=file, key=f"{key}.token_dtype",
            remedy="name the tokenizer that the data were made with, or set it to uint16 if the ids are right",
        )  # fmt: skip
    return np.dtype("<u2")


def refuse_narrow(
    dtype: np.dtype[Any], file: str, *, wanted: str | None, vocabulary: int | None, key: str
) -> None:
    """Raise a `UserError` where ids are of 16 bits and the vocabulary has more: larger ones were cut to their low bits.

    Args:
        dtype: of the ids, as the file says.
        file: path or URI.
        wanted: `uint16` where who wrote the configuration knows that they are right.
        vocabulary: size of the tokenizer's; None where it is not known.
        key: configuration key of the source, for errors.
    """
    if vocabulary is not None and vocabulary > 1 << 16 and dtype.itemsize <= 2 and wanted != "uint16":
        raise UserError(
            f"has ids of {8 * dtype.itemsize} bits, which cannot name all of the vocabulary of {vocabulary:,}",
            file=file, key=f"{key}.token_dtype",
            remedy="name the tokenizer that the data were made with, or set it to uint16 if the ids are right",
        )  # fmt: skip


def _contradiction(file: str, key: str, wanted: str, width: int) -> UserError:
    return UserError(
        f"holds ids of {8 * width} bits", file=file, key=f"{key}.token_dtype", value=wanted,
        remedy="leave it out, or set it to the type the file was written with",
    )  # fmt: skip


def _proves(read: _Reading, enough: int) -> bool:
    return read.told >= enough and read.fits


def _nature(found: _Found, proved: int | None, enough: int, wanted: str | None) -> tuple[str, str] | None:
    """What a file holds that are no ids as they are read here, and what to do about it."""
    if what := contents(found.head) or ("text" if is_text(found.head) else None):
        return f"{what}, not token ids", "name a file of ids, or set the format that it has"
    if len(found.head) >= 4 and int.from_bytes(found.head[:4], "little") in _LLM_C:
        return "a header of llm.c before its ids", "take its first 1,024 bytes off (tail -c +1025)"
    if proved is not None:
        return None
    again = "write it as little-endian uint16 or uint32, or as .npy"
    if any(_proves(found.read[kind], enough) for kind in ("<f4", "<f8")):
        return "floating-point numbers", again
    low, high, distance, number = found.pairs
    if any(_proves(found.read[kind], enough) for kind in (">u4", ">u8")) or (
        number >= _BYTES and low + _ORDERED < high
    ):
        return "ids with their high bytes first (big-endian)", again
    if number >= _BYTES and distance < _SAME and low < _EVEN and wanted is None:
        return "bytes, not ids of 16 bits or more", again
    return None


def _look(file: str, most: int) -> _Found:
    system, inner = filesystem(file)
    with system.open_input_file(inner) as stream:
        found = _Found(int(stream.size()))
        found.head = stream.read(HEAD)
        if found.head.startswith(b"\x93NUMPY"):
            stream.seek(0)
            found.header = _array(stream, np.dtype("<u2"))[2]
            return found
        stream.seek(0)
        found.read = {kind: _Reading() for kind in ("<u2", "<u4", "<u8", ">u4", ">u8", "<f4", "<f8")}
        halves = np.zeros((2, 1 << 16), np.int64)
        pairs = np.zeros((2, 256), np.int64)
        left = min(found.size, _LOOKED_AT)
        while left and found.read["<u4"].told < _TOLD:
            data = stream.read(min(left, _BLOCK))
            left -= len(data)
            for kind, read in found.read.items():
                whole = len(data) // np.dtype(kind).itemsize * np.dtype(kind).itemsize
                read.add(np.frombuffer(data[:whole], kind), most)
            words = np.frombuffer(data[: len(data) // 4 * 4], "<u2").reshape(-1, 2)
            words = words[words.any(axis=1)]
            single = np.frombuffer(data[: len(data) // 2 * 2], np.uint8).reshape(-1, 2)
            single = single[single.any(axis=1)]
            for side in (0, 1):
                halves[side] += np.bincount(words[:, side], minlength=1 << 16)
                pairs[side] += np.bincount(single[:, side], minlength=256)
    found.apart = _distance(halves)
    found.pairs = (_bits(pairs[0]), _bits(pairs[1]), _distance(pairs), int(pairs.sum()))
    return found


def _distance(counts: np.ndarray) -> float:
    """Total variation between two distributions of as many things."""
    return float(np.abs(counts[0] - counts[1]).sum() / max(1, counts.sum()))


def _bits(counts: np.ndarray) -> float:
    """Entropy of a distribution."""
    share = counts[counts > 0] / max(1, counts.sum())
    return float(-(share * np.log2(share)).sum())


def token_stream(file: str, dtype: np.dtype[Any], eos: int, block: int) -> Iterator[tuple[np.ndarray, bool]]:
    """Documents of a raw stream of ids, split at `eos` (left out) or, where there is none, in blocks.

    Yields:
        ids, int64 of shape (n,), and whether the document ended with `eos`.
    """
    if not any((part == eos).any() for part in raw_ids(file, dtype)):
        rest = np.empty(0, dtype=np.int64)
        for part in raw_ids(file, dtype):
            rest = np.concatenate([rest, part.astype(np.int64)])
            whole = len(rest) // block * block
            for start in range(0, whole, block):
                yield rest[start : start + block], False
            rest = rest[whole:]
        yield rest, False
        return
    pending: list[np.ndarray] = []
    for part in raw_ids(file, dtype):
        start = 0
        for stop in np.flatnonzero(part == eos).tolist():
            yield np.concatenate([*pending, part[start:stop].astype(np.int64)]), True
            pending, start = [], stop + 1
        pending.append(part[start:].astype(np.int64))
    if pending:
        yield np.concatenate(pending), True


def raw_ids(file: str, dtype: np.dtype[Any]) -> Iterator[np.ndarray]:
    """Ids in parts; a file with a NumPy header says its own type, one without is read as `dtype`.

    Ids of 32 and 64 bits are read as signed: a label such as -100 is then itself.
    """
    system, inner = filesystem(file)
    with system.open_input_file(inner) as stream:
        start, left, dtype = _array(stream, dtype)
        stream.seek(start)
        while left:
            ids = np.frombuffer(stream.read(min(left, _TOKENS) * dtype.itemsize), dtype=dtype)
            left -= len(ids)
            yield ids


def raw_count(file: str, dtype: np.dtype[Any]) -> int:
    """How many ids `raw_ids` would read."""
    system, inner = filesystem(file)
    with system.open_input_file(inner) as stream:
        return _array(stream, dtype)[1]


def _array(stream: pa.NativeFile, dtype: np.dtype[Any]) -> tuple[int, int, np.dtype[Any]]:
    """Where the ids of a raw file begin, how many there are, and their type."""
    size = int(stream.size())
    if stream.read(6) == b"\x93NUMPY":
        stream.seek(0)
        head = io.BytesIO(stream.read(min(size, 1 << 16)))
        shape, dtype = _numpy_header(head)
        if len(shape) != 1 or dtype.kind not in "iu":
            raise ValueError(f"must hold a flat array of integers, not {dtype} of shape {shape}")
        need = head.tell() + shape[0] * dtype.itemsize
        if size != need:
            raise ValueError("the array is cut off" if size < need else "holds more than one array")
        return head.tell(), int(shape[0]), dtype
    if size % dtype.itemsize:
        raise ValueError(f"the size is not a multiple of {dtype.itemsize} bytes ({dtype})")
    signed = dtype if dtype.itemsize == 2 else np.dtype(dtype.str.replace("u", "i"))
    return 0, size // dtype.itemsize, signed


def _numpy_header(head: io.BytesIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array, from the beginning of its file."""
    version = np.lib.format.read_magic(head)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy mends what it takes for a header of Python 2
            shape, _, dtype = read(head)
    except (UserWarning, SyntaxError, TokenError):
        raise ValueError("its NumPy header is broken") from None
    return shape, dtype
