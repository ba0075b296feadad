"""Megatron's indexed data sets, written as its documentation describes them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

CODES = {"uint8": 1, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}


def write_indexed(prefix: Path, documents: Sequence[Sequence[Sequence[int]]], dtype: str = "uint16") -> Path:
    """Write `prefix.bin` and `prefix.idx`: documents, each of sequences, each of ids."""
    sequences = [sequence for document in documents for sequence in document]
    flat = np.array([token for sequence in sequences for token in sequence], dtype=dtype)
    lengths = [len(sequence) for sequence in sequences]
    marks = [0, *accumulate(len(document) for document in documents)]
    offsets = (np.cumsum([0, *lengths])[:-1] * flat.itemsize).astype("<i8")
    index = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, CODES[dtype], len(sequences), len(marks))
    index += np.array(lengths, "<i4").tobytes() + offsets.tobytes() + np.array(marks, "<i8").tobytes()
    Path(f"{prefix}.bin").write_bytes(flat.tobytes())
    Path(f"{prefix}.idx").write_bytes(index)
    return prefix
