"""One split of one domain's prepared sequences, memory-mapped; and the tokens of a sampler's batch.

    store = TokenStore.open(prepared.domains["code"].path, "train")
    store[3]                      # (seq_len,) uint16 or uint32, a view on the file
    ids, mask = store.batch([3, 7])  # (2, seq_len) int64 and bool

Opening reads the manifest and the shards' footers only; a store pickles as its path.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from opmix_ray.data.sampler import Batch
from opmix_ray.errors import UserError
from opmix_ray.sources.files import local_directory

MANIFEST = "manifest.json"
_COUNTS = ("documents", "tokens", "counted_tokens", "bytes", "without_answer")
MANIFEST_VERSION = 8


class TokenStore(Sequence[np.ndarray]):
    """Sequences of one split; use `TokenStore.open`."""

    def __init__(self, path: str, split: str) -> None:
        directory = local_directory(path)
        self.path = path
        self.split = split
        self.manifest = read_manifest(directory)
        part = self.manifest["splits"][split]
        self.seq_len: int = self.manifest["seq_len"]
        self._ids: list[np.ndarray] = []
        self._masks: list[np.ndarray] = []
        for shard in part["shards"]:
            self._map(directory / shard["file"])
        self._starts = [0, *accumulate(len(block) for block in self._ids)]
        if len(self) != part["sequences"]:
            raise UserError(
                f"holds {len(self)} {split} sequences where the manifest says {part['sequences']}",
                file=directory,
                remedy="delete the directory and prepare again",
            )

    @classmethod
    def open(cls, path: str, split: str = "train") -> TokenStore:
        """Open a prepared directory, or a URI (downloaded once into the local cache).

        Args:
            path: `PreparedDomain.path`.
            split: `train` or `eval`.

        Raises:
            UserError: there is no manifest, or a shard is missing, broken, or of another length.
        """
        return cls(path, split)

    def _map(self, file: Path) -> None:
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(file), "r"))
            for index in range(reader.num_record_batches):
                batch = reader.get_batch(index)
                self._ids.append(self._matrix(batch.column("input_ids")))
                if "loss_mask" in batch.schema.names:
                    self._masks.append(self._matrix(batch.column("loss_mask")))
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise UserError(
                f"is not a token shard: {error}", file=file, remedy="delete its directory and prepare again"
            ) from None

    def _matrix(self, column: Any) -> np.ndarray:
        """A view of shape (sequences, seq_len) on a FixedSizeList column."""
        return np.asarray(column.flatten().to_numpy(zero_copy_only=True).reshape(-1, self.seq_len))

    @property
    def has_mask(self) -> bool:
        """Whether some tokens do not count in the loss (instruction data)."""
        return bool(self._masks)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: Any) -> Any:
        """Sequence `index` as a read-only view of shape (seq_len,), in the type it is stored in."""
        block, row = self._locate(index)
        return self._ids[block][row]

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self._ids:
            yield from block

    def mask(self, index: int) -> np.ndarray:
        """Which tokens of sequence `index` count in the loss, bool of shape (seq_len,)."""
        block, row = self._locate(index)
        if not self._masks:
            return np.ones(self.seq_len, dtype=np.bool_)
        return self._masks[block][row].astype(np.bool_)

    def batch(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Several sequences, copied.

        Args:
            indices: n positions in the store.

        Returns:
            ids, int64 of shape (n, seq_len), and mask, bool of shape (n, seq_len): True where the token
            counts as a target in the loss.

        Raises:
            IndexError: a position is outside the store.
        """
        ids = np.empty((len(indices), self.seq_len), dtype=np.int64)
        mask = np.ones((len(indices), self.seq_len), dtype=np.bool_)
        for row, index in enumerate(indices):
            self.copy(index, ids[row], mask[row])
        return ids, mask

    def copy(self, index: Any, ids: np.ndarray, mask: np.ndarray) -> None:
        """Copy sequence `index` into `ids` and `mask`, both (seq_len,); a mask that is all True stays as it is."""
        block, position = self._locate(index)
        ids[:] = self._ids[block][position]
        if self._masks:
            mask[:] = self._masks[block][position]

    def _locate(self, index: Any) -> tuple[int, int]:
        if isinstance(index, slice):
            raise TypeError("a TokenStore has no slices; use batch(range(...))")
        position = int(index)
        count = self._starts[-1]
        if position < 0:
            position += count
        if not 0 <= position < count:
            raise IndexError(f"sequence {index} of {count}")
        block = bisect_right(self._starts, position) - 1
        return block, position - self._starts[block]

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore.open, (self.path, self.split)

    def __repr__(self) -> str:
        return f"TokenStore({self.path!r}, {self.split!r}, {len(self)} x {self.seq_len})"


def read_manifest(directory: Path) -> dict[str, Any]:
    """A prepared directory's manifest.

    Raises:
        UserError: it is missing, broken, or of another version.
    """
    file = directory / MANIFEST
    remedy = "delete the directory and prepare again"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("no such file", file=file, remedy="prepare the data first") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read: {error}", file=file, remedy=remedy) from None
    if (
        not isinstance(manifest, dict)
        or manifest.get("version") != MANIFEST_VERSION
        or not _complete(manifest)
    ):
        raise UserError("is not a manifest of this version", file=file, remedy=remedy)
    return manifest


def _complete(manifest: dict[str, Any]) -> bool:
    """Whether a manifest has what is read of it, in the types it is written in."""
    splits = manifest.get("splits")
    if (
        not isinstance(splits, dict)
        or not _are_counts(manifest, "seq_len", "leaks")
        or manifest["seq_len"] < 1
    ):
        return False
    for part in (splits.get("train"), splits.get("eval")):
        if not isinstance(part, dict) or not _are_counts(part, "sequences", *_COUNTS):
            return False
        shards = part.get("shards")
        if not isinstance(shards, list) or not all(isinstance(shard, dict) for shard in shards):
            return False
        names = [shard.get("file") for shard in shards]
        if not all(isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) for name in names):
            return False
    return True


def _are_counts(values: dict[str, Any], *names: str) -> bool:
    return all(isinstance(values.get(name), int) and values[name] >= 0 for name in names)


def gather(
    stores: Mapping[str, TokenStore], batch: Batch, own: slice = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of a batch's sequences.

    Args:
        stores: of the batch's domains, all of one sequence length L.
        batch: names the sequences.
        own: which of its n rows.

    Returns:
        ids, int64 of shape (n, L), and mask, bool of shape (n, L): whether the token counts in the loss.
    """
    domain_ids, indices = batch.domain_ids[own].tolist(), batch.indices[own].tolist()
    length = next(iter(stores.values())).seq_len
    ids, mask = np.empty((len(indices), length), np.int64), np.ones((len(indices), length), bool)
    for row, (position, index) in enumerate(zip(domain_ids, indices, strict=True)):
        stores[batch.domains[position]].copy(index, ids[row], mask[row])
    return ids, mask
