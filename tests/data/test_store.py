"""A store gives back what was written, and says so when it cannot."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opmix_ray.data import shards
from opmix_ray.data.shards import SplitWriter, Spool
from opmix_ray.data.store import MANIFEST, MANIFEST_VERSION, TokenStore
from opmix_ray.errors import UserError

IDS = st.lists(st.integers(0, 70_000), min_size=1)


def write_store(
    directory: Path, documents: list[np.ndarray], *, seq_len: int, vocab_size: int = 300, masks: Any = None
) -> TokenStore:
    """Write documents as the training part of a store."""
    writer = SplitWriter(directory, "train", seq_len=seq_len, vocab_size=vocab_size, eos=0)
    for index, ids in enumerate(documents):
        writer.add(ids, None if masks is None else masks[index], len(ids))
    nothing = SplitWriter(directory, "eval", seq_len=seq_len, vocab_size=vocab_size, eos=0)
    splits = {"train": writer.close(), "eval": nothing.close()}
    manifest = {"version": MANIFEST_VERSION, "seq_len": seq_len, "leaks": 0, "splits": splits}
    (directory / MANIFEST).write_text(json.dumps(manifest))
    return TokenStore.open(str(directory))


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return write_store(tmp_path, [np.arange(1, 101)], seq_len=8)


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    seq_len=st.integers(1, 12),
    batch=st.integers(1, 50),
    shard=st.integers(1, 100),
    vocab_size=st.sampled_from([300, 70_000]),
)
@pytest.mark.seconds
def test_documents_come_back_in_order(
    lengths: list[int],
    seq_len: int,
    batch: int,
    shard: int,
    vocab_size: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    rng = np.random.default_rng(sum(lengths))
    documents = [rng.integers(0, vocab_size, length) for length in lengths]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "BATCH_TOKENS", batch)
        patch.setattr(shards, "SHARD_TOKENS", shard)
        store = write_store(tmp_path_factory.mktemp("s"), documents, seq_len=seq_len, vocab_size=vocab_size)
    whole = np.concatenate(documents)
    count = len(whole) // seq_len
    assert len(store) == count
    expected = whole[: count * seq_len].reshape(count, seq_len)
    ids, mask = store.batch(range(count))
    assert (ids == expected).all()
    assert mask.all()
    assert ids.dtype == np.int64
    assert all((a == b).all() for a, b in zip(store, expected, strict=True))
    if count:
        assert store[0].dtype == (np.uint16 if vocab_size == 300 else np.uint32)


@settings(deadline=None, max_examples=60)
@given(examples=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=60))
@pytest.mark.seconds
def test_packed_examples_come_back_whole(
    examples: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    documents = [np.full(prompt + answer, 1 + n) for n, (prompt, answer) in enumerate(examples)]
    masks = [np.arange(prompt + answer) >= prompt for prompt, answer in examples]
    store = write_store(tmp_path_factory.mktemp("s"), documents, seq_len=16, masks=masks)
    ids, mask = store.batch(range(len(store)))
    found: dict[int, list[bool]] = {}
    for row in range(len(store)):
        for number in dict.fromkeys(ids[row][ids[row] > 0].tolist()):
            assert number not in found, "an example is in one sequence only"
            places = np.flatnonzero(ids[row] == number)
            assert (np.diff(places) == 1).all()
            found[number] = mask[row][places].tolist()
        assert not mask[row][ids[row] == 0].any()
    part = store.manifest["splits"]["train"]
    expected = {n + 1: list(m)[:16] for n, m in enumerate(masks) if m[1:16].any()}
    assert found == expected
    assert part["without_answer"] == len(masks) - len(expected)
    assert part["truncated"] == sum(len(m) > 16 and n + 1 in expected for n, m in enumerate(masks))


@settings(deadline=None, max_examples=40)
@given(documents=st.lists(st.tuples(st.integers(0, 2**64 - 1), IDS), max_size=20))
@pytest.mark.seconds
def test_a_spool_gives_documents_back_by_digest(
    documents: list[tuple[int, list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("spool")
    spool = Spool(directory)
    for digest, ids in documents:
        spool.add(digest, np.array(ids), None, len(ids))
    assert spool.digests().tolist() == [digest for digest, _ in documents]
    assert spool.tokens().tolist() == [len(ids) for _, ids in documents]
    chosen = np.array([n % 3 > 0 for n in range(len(documents))], bool)
    some = [document for document, taken in zip(documents, chosen, strict=True) if taken]
    assert [ids.tolist() for ids, _, _ in spool.read(chosen)] == [ids for _, ids in some]
    by_digest = sorted(some, key=lambda document: (document[0], len(document[1])))
    assert [ids.tolist() for ids, _, _ in spool.read(chosen, by_digest=True)] == [ids for _, ids in by_digest]
    spool.remove()
    assert list(directory.iterdir()) == []


def test_a_sequence_is_a_read_only_view(store: TokenStore) -> None:
    assert store[0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert store[-1].tolist() == [89, 90, 91, 92, 93, 94, 95, 96]
    assert not store[0].flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        store[0][0] = 5


def test_positions_outside_are_refused(store: TokenStore) -> None:
    assert len(store) == 12
    for position in (12, -13):
        with pytest.raises(IndexError):
            store[position]
        with pytest.raises(IndexError):
            store.batch([position])
    with pytest.raises(TypeError, match="no slices"):
        store[0:2]


def test_a_batch_may_be_empty_or_repeat(store: TokenStore) -> None:
    assert store.batch([])[0].shape == (0, 8)
    assert store.batch([3, 3])[0].tolist() == [store[3].tolist()] * 2


def test_a_store_without_masks_counts_every_token(store: TokenStore) -> None:
    assert not store.has_mask
    assert store.mask(0).tolist() == [True] * 8


def test_a_store_pickles_as_its_path(store: TokenStore) -> None:
    data = pickle.dumps(store)
    assert len(data) < 500
    assert pickle.loads(data)[5].tolist() == store[5].tolist()


def test_a_uri_opens_as_well(store: TokenStore) -> None:
    assert TokenStore.open(Path(store.path).as_uri())[2].tolist() == store[2].tolist()


def cut_shard(directory: Path) -> None:
    shard = directory / "train-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:100])


def lose_shard(directory: Path) -> None:
    (directory / "train-00000.arrow").unlink()


def other_shard(directory: Path) -> None:
    table = pa.table({"input_ids": pa.array([[1] * 8], pa.list_(pa.uint16(), 8))})
    with pa.ipc.new_file(directory / "train-00000.arrow", table.schema) as writer:
        writer.write_table(table)


def lose_manifest(directory: Path) -> None:
    (directory / MANIFEST).unlink()


def spoil_manifest(directory: Path) -> None:
    (directory / MANIFEST).write_text("{")


def age_manifest(directory: Path) -> None:
    (directory / MANIFEST).write_text('{"version": 0}')


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (cut_shard, "is not a token shard"),
        (lose_shard, "is not a token shard"),
        (other_shard, "holds 1 train sequences where the manifest says 12"),
        (lose_manifest, "no such file; prepare the data first"),
        (spoil_manifest, "cannot be read"),
        (age_manifest, "is not a manifest of this version"),
        (shutil.rmtree, "no such file"),
    ],
)
def test_a_spoilt_store_says_what_to_do(spoil: Any, expected: str, store: TokenStore) -> None:
    spoil(Path(store.path))
    with pytest.raises(UserError, match=expected) as caught:
        TokenStore.open(store.path)
    assert store.path in str(caught.value)
    assert "prepare" in str(caught.value)
