"""Documents of Megatron's indexed data sets: token ids in a `.bin` file, lengths and documents in the `.idx` beside it.

The index is, in little endian: the magic `MMIDIDX\\0\\0`, a version (uint64, 1), the type code of the ids (uint8), the
numbers S of sequences and D + 1 of document marks (uint64 each), then S lengths (int32), S byte offsets into the `.bin`
(int64) and D + 1 marks (int64): document i is the sequences from mark i up to mark i + 1
(`megatron/core/datasets/indexed_dataset.py` of Megatron-LM).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from pyarrow import fs as pafs

from opmix_ray.paths import BIN, IDX, is_uri
from opmix_ray.sources.files import InputFile, filesystem

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


def documents(path: str) -> Iterator[np.ndarray]:
    """Ids of every document of a `.bin` file in order, of shape (n,); end-of-text ids are left in.

    Raises:
        OSError, ValueError: see `read_index`.
    """
    dtype, ends = read_index(path)
    system, inner = filesystem(path)
    with system.open_input_file(inner) as stream:
        at = document = 0
        while document < len(ends):
            last = max(document + 1, int(np.searchsorted(ends, at + _TOKENS, side="right")))
            stop = int(ends[last - 1])
            ids = np.frombuffer(stream.read((stop - at) * dtype.itemsize), dtype)
            yield from np.split(ids, ends[document : last - 1] - at)
            at, document = stop, last
