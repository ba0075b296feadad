"""Sequences into Arrow shards: the writing side of `store.py`.

    writer = SplitWriter(directory, "train", seq_len=1024, vocab_size=4096, eos=0)
    writer.add(ids, None, size)
    part = writer.close()                    # this split's entry in the manifest

Text is concatenated and cut every `seq_len` tokens. Instruction examples are packed whole.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from opmix_ray.sources.files import hash_of

SHARD_TOKENS = 1 << 26  # tokens in one file
BATCH_TOKENS = 1 << 20  # tokens in one record batch
OPEN_SEQUENCES = 16  # sequences that an example may still be packed into


class SplitWriter:
    """Writes one split of one domain.

    Args:
        directory: where the shards go.
        split: `train` or `eval`.
        seq_len: tokens in a sequence.
        vocab_size: decides between uint16 and uint32.
        eos: fills up sequences of instruction data.
    """

    def __init__(self, directory: Path, split: str, *, seq_len: int, vocab_size: int, eos: int) -> None:
        self._directory, self._split, self._seq_len, self._eos = directory, split, seq_len, eos
        self._dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
        self._rest: list[np.ndarray] = []  # tokens of text not yet written
        self._rest_tokens = 0
        self._bins: list[tuple[list[np.ndarray], list[np.ndarray], int]] = []  # ids, masks, tokens
        self._full: list[tuple[np.ndarray, np.ndarray]] = []
        self._file: pa.ipc.RecordBatchFileWriter | None = None
        self._in_file = 0
        self._digest = hashlib.blake2b(digest_size=16)
        self._shards: list[dict[str, Any]] = []
        self._counts = dict.fromkeys(
            ("documents", "tokens", "counted_tokens", "bytes", "truncated", "without_answer"), 0
        )

    def add(self, ids: np.ndarray, mask: np.ndarray | None, size: int) -> None:
        """One document: ids (n,), mask (n,) or None, UTF-8 bytes that its counted tokens stand for."""
        if mask is not None:
            self._pack(ids, mask, size)
            return
        self._count(documents=1, tokens=len(ids), counted_tokens=len(ids), bytes=size)
        self._rest.append(ids.astype(self._dtype))
        self._rest_tokens += len(ids)
        if self._rest_tokens >= max(BATCH_TOKENS, self._seq_len):
            self._cut()

    def _count(self, **more: int) -> None:
        for name, number in more.items():
            self._counts[name] += number

    def _cut(self) -> None:
        joined = np.concatenate(self._rest)
        whole = len(joined) // self._seq_len * self._seq_len
        self._write(joined[:whole], None)
        self._rest, self._rest_tokens = [joined[whole:]], len(joined) - whole

    def _pack(self, ids: np.ndarray, mask: np.ndarray, size: int) -> None:
        answer = int(mask.sum())
        truncated = len(ids) > self._seq_len
        ids, mask = ids[: self._seq_len], mask[: self._seq_len]
        kept = int(mask[1:].sum())  # the first token of an example that opens a sequence is no target
        if not kept:
            self._count(without_answer=1)
            return
        self._count(
            documents=1,
            tokens=len(ids),
            counted_tokens=int(mask.sum()),
            bytes=round(size * int(mask.sum()) / answer),
            truncated=int(truncated),
        )
        place = next((i for i, bin_ in enumerate(self._bins) if bin_[2] + len(ids) <= self._seq_len), None)
        parts, masks, used = self._bins.pop(place) if place is not None else ([], [], 0)
        packed = ([*parts, ids], [*masks, mask], used + len(ids))
        if packed[2] == self._seq_len:
            self._finish(packed)
        else:
            self._bins.insert(len(self._bins) if place is None else place, packed)
        if len(self._bins) > OPEN_SEQUENCES:
            self._finish(self._bins.pop(0))

    def _finish(self, packed: tuple[list[np.ndarray], list[np.ndarray], int]) -> None:
        ids = np.full(self._seq_len, self._eos, dtype=self._dtype)
        mask = np.zeros(self._seq_len, dtype=np.uint8)
        ids[: packed[2]] = np.concatenate(packed[0])
        mask[: packed[2]] = np.concatenate(packed[1])
        self._full.append((ids, mask))
        if len(self._full) * self._seq_len >= BATCH_TOKENS:
            self._flush()

    def _flush(self) -> None:
        if self._full:
            self._write(
                np.concatenate([f[0] for f in self._full]), np.concatenate([f[1] for f in self._full])
            )
            self._full = []

    def _write(self, ids: np.ndarray, mask: np.ndarray | None) -> None:
        columns = {"input_ids": ids} if mask is None else {"input_ids": ids, "loss_mask": mask}
        for values in columns.values():
            self._digest.update(np.ascontiguousarray(values).tobytes())
        step = max(1, BATCH_TOKENS // self._seq_len) * self._seq_len
        for start in range(0, len(ids), step):
            arrays = [
                pa.FixedSizeListArray.from_arrays(pa.array(values[start : start + step]), self._seq_len)
                for values in columns.values()
            ]
            batch = pa.RecordBatch.from_arrays(arrays, names=list(columns))
            if self._file is None:
                name = f"{self._split}-{len(self._shards):05d}.arrow"
                self._file = pa.ipc.new_file(str(self._directory / name), batch.schema)
                self._shards.append({"file": name, "sequences": 0})
            self._file.write_batch(batch)
            self._shards[-1]["sequences"] += batch.num_rows
            self._in_file += batch.num_rows * self._seq_len
            if self._in_file >= SHARD_TOKENS:
                self._end_file()

    def _end_file(self) -> None:
        if self._file is not None:
            self._file.close()
            shard = self._shards[-1]
            shard["hash"] = hash_of(self._directory / shard["file"])
        self._file, self._in_file = None, 0

    def close(self) -> dict[str, Any]:
        """Finish the files.

        Returns:
            `sequences`, `shards`, `documents`, `tokens` (all documents', before cutting), `dropped_tokens`
            (rest of the last sequence), `padding` (fill in packed sequences), `counted_tokens` and `bytes`
            (UTF-8, that these stand for), `truncated` and `without_answer` (examples), and `digest`, a hash of
            the sequences.
        """
        if self._rest:
            self._cut()
        for packed in self._bins:
            self._finish(packed)
        self._flush()
        self._end_file()
        sequences = sum(shard["sequences"] for shard in self._shards)
        left = self._counts["tokens"] - sequences * self._seq_len
        return {
            "sequences": sequences,
            **self._counts,
            "dropped_tokens": max(0, left),
            "padding": max(0, -left),
            "digest": self._digest.hexdigest(),
            "shards": self._shards,
        }


class Spool:
    """Documents kept on disk until all are there and it is known where each one goes.

    Args:
        directory: where its temporary file lies.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "spool"
        self._file = open(self._path, "wb")  # noqa: SIM115  (closed by `read`)
        self._digests, self._places, self._tokens, self._sizes = (
            array("Q"),
            array("Q"),
            array("q"),
            array("q"),
        )
        self._masked = False

    def add(self, digest: int, ids: np.ndarray, mask: np.ndarray | None, size: int) -> None:
        """One document, as for `SplitWriter.add`."""
        self._digests.append(digest)
        self._places.append(self._file.tell())
        self._tokens.append(len(ids))
        self._sizes.append(size)
        self._file.write(ids.astype(np.uint32).tobytes())
        if mask is not None:
            self._masked = True
            self._file.write(mask.astype(np.uint8).tobytes())

    def digests(self) -> np.ndarray:
        """Digests of the documents in the order they came, uint64."""
        return np.array(self._digests, dtype=np.uint64)

    def tokens(self) -> np.ndarray:
        """Tokens of each document in the order they came."""
        return np.array(self._tokens, dtype=np.int64)

    def read(
        self, chosen: np.ndarray, *, by_digest: bool = False
    ) -> Iterator[tuple[np.ndarray, np.ndarray | None, int]]:
        """ids, mask and size of some documents.

        Args:
            chosen: bool, one entry a document.
            by_digest: in the order of their digests, so that they are the same, sequence by sequence, however the
                files are split or ordered, and a beginning of them is a fair sample; else as they came.
        """
        self._file.close()
        order = np.flatnonzero(chosen)
        if by_digest:
            order = order[np.lexsort((self.tokens()[order], self.digests()[order]))]
        with open(self._path, "rb") as file:
            for index in order.tolist():
                tokens = self._tokens[index]
                file.seek(self._places[index])
                ids = np.frombuffer(file.read(4 * tokens), dtype=np.uint32)
                mask = np.frombuffer(file.read(tokens), dtype=np.uint8) != 0 if self._masked else None
                yield ids, mask, self._sizes[index]

    def remove(self) -> None:
        """Remove the temporary file."""
        self._file.close()
        self._path.unlink()
