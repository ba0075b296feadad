"""Raw ids without a header are read at the width that their bytes prove, or refused."""

from __future__ import annotations

import gzip
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard

from opmix_ray.config import RunConfig
from opmix_ray.data.prepare import prepare
from opmix_ray.errors import UserError
from opmix_ray.init.discover import discover
from opmix_ray.init.inspect import inspect_part
from opmix_ray.sources.megatron import raw_dtype, raw_ids

Make = Callable[..., RunConfig]


def written(path: Path, dtype: str, vocabulary: int, count: int = 4000) -> str:
    ids = np.random.default_rng(0).zipf(1.3, count) % vocabulary
    ids[::50] = 0
    ids.astype(dtype).tofile(path)
    return str(path)


def seen(path: str, vocabulary: int | None, wanted: str | None = None) -> str:
    return raw_dtype(path, wanted=wanted, vocabulary=vocabulary, key="data.domains.d").str


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("vocabulary", [300, 50_257, 65_536, 100_278, 262_144])
@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<i4", "<i8"])
def test_the_width_is_what_the_bytes_prove(dtype: str, vocabulary: int, known: bool, tmp_path: Path) -> None:
    if dtype == "<u2" and vocabulary > 1 << 16:
        pytest.skip("ids that do not fit")
    path = written(tmp_path / "a.bin", dtype, vocabulary)
    assert seen(path, vocabulary if known else None) == dtype.replace("i", "u")


def test_ids_of_16_bits_do_not_name_a_large_vocabulary(tmp_path: Path) -> None:
    path = written(tmp_path / "a.npy", "<u2", 60_000)
    with pytest.raises(UserError, match=r"token_dtype: holds no ids of 32 bits.*vocabulary of 100,278"):
        seen(path, 100_278)
    assert seen(path, 100_278, "uint16") == "<u2", "who says so is believed"


def test_a_header_with_16_bits_for_a_large_vocabulary_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ZIPF.astype("<u2"))
    refused: list[str | None] = [None, "uint32"]
    for wanted in refused:
        with pytest.raises(
            UserError, match=r"token_dtype: has ids of 16 bits, which cannot name all .* 100,278"
        ):
            seen(str(tmp_path / "a.npy"), 100_278, wanted)
    seen(str(tmp_path / "a.npy"), 100_278, "uint16")
    seen(str(tmp_path / "a.npy"), 65_536)
    seen(str(tmp_path / "a.npy"), None)
    np.save(tmp_path / "b.npy", ZIPF.astype("<u4"))
    seen(str(tmp_path / "b.npy"), 100_278)


@pytest.mark.parametrize(
    ("dtype", "wanted", "bits"), [("<u4", "uint16", 32), ("<u2", "uint32", 16), ("<i8", "uint32", 64)]
)
def test_what_is_configured_must_not_contradict_the_file(
    dtype: str, wanted: str, bits: int, tmp_path: Path
) -> None:
    path = written(tmp_path / "a.bin", dtype, 50_000)
    with pytest.raises(UserError, match=rf"token_dtype = {wanted}: holds ids of {bits} bits; leave it out"):
        seen(path, 50_257, wanted)


def test_a_file_too_short_to_tell_is_refused(tmp_path: Path) -> None:
    np.array([5, 6], "<u4").tofile(tmp_path / "a.bin")
    with pytest.raises(UserError, match="may hold ids of 16 or of 32 bits"):
        seen(str(tmp_path / "a.bin"), 300)
    assert seen(str(tmp_path / "a.bin"), 300, "uint32") == "<u4"


@pytest.mark.parametrize("odd", ["too large", "a label", "cut off"])
def test_one_odd_id_does_not_halve_a_file(odd: str, tmp_path: Path) -> None:
    """All ids but one show 32 bits: the odd one is named, instead of ids and zeros being read in turn."""
    path = Path(written(tmp_path / "a.bin", "<u4", 50_257))
    ids = np.fromfile(path, "<i4")
    ids[7] = {"too large": 100_000, "a label": -100}.get(odd, ids[7])
    path.write_bytes(ids.tobytes()[: -2 if odd == "cut off" else None])
    assert seen(str(path), 50_257) == seen(str(path), None) == seen(str(path), 65_536) == "<u4"
    if odd == "cut off":
        with pytest.raises(ValueError, match="not a multiple of 4 bytes"):
            next(raw_ids(str(path), np.dtype("<u4")))
    else:
        assert ids[7] in next(raw_ids(str(path), np.dtype("<u4")))


def _saved(write: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


TEXT = b"Words of a text, which is no list of ids. " * 60
ZIPF = np.random.default_rng(1).zipf(1.3, 4000) % 65_000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (ZIPF.astype(">u2").tobytes(), "high bytes first"),
        (ZIPF.astype(">u4").tobytes(), "high bytes first"),
        (ZIPF.astype(">i8").tobytes(), "high bytes first"),
        (ZIPF.astype("<f4").tobytes(), "floating-point numbers"),
        (ZIPF.astype("<f8").tobytes(), "floating-point numbers"),
        ((ZIPF % 256).astype("u1").tobytes(), "bytes, not ids of 16 bits"),
        (TEXT, "text, not token ids"),
        (gzip.compress(TEXT, mtime=0), "data compressed with gzip, not token ids"),
        (zstandard.compress(ZIPF.astype("<u2").tobytes()), "data compressed with zstd, not token ids"),
        (pickle.dumps(ZIPF.tolist()), "a pickle of Python, not token ids"),
        (_saved(lambda file: np.savez(file, ZIPF.astype("<u2"))), "a zip archive, not token ids"),
        (_saved(lambda file: torch.save(torch.tensor(ZIPF), file)), "a zip archive, not token ids"),
        (_saved(lambda file: pq.write_table(pa.table({"ids": [[1, 2]]}), file)), "Parquet, not token ids"),
        (np.array([20240520, 1, 4000] + [0] * 253, "<i4").tobytes() + ZIPF.astype("<u2").tobytes(), "llm.c"),
    ],
)
@pytest.mark.parametrize("vocabulary", [65_536, None])
def test_what_holds_no_ids_is_named(
    content: bytes, said: str, vocabulary: int | None, tmp_path: Path
) -> None:
    """Each can be read as 16-bit ids of a vocabulary of 65,536."""
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.bin: data\.domains\.d\.path: holds .*{said}.*; "):
        seen(str(tmp_path / "a.bin"), vocabulary)


@pytest.mark.parametrize("vocabulary", [300, 8_000, 32_000, 50_257, 65_536])
@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<i8"])
def test_ids_that_are_as_good_as_random_are_still_ids(dtype: str, vocabulary: int, tmp_path: Path) -> None:
    ids = np.random.default_rng(2).integers(0, vocabulary, 6000)
    ids[3000:5000] = 0  # padding
    ids.astype(dtype).tofile(tmp_path / "a.bin")
    assert seen(str(tmp_path / "a.bin"), vocabulary) == dtype.replace("i", "u")
    assert seen(str(tmp_path / "a.bin"), None) == dtype.replace("i", "u")


def test_arrays_one_after_the_other_are_refused(tmp_path: Path) -> None:
    with open(tmp_path / "a.npy", "wb") as file:
        np.save(file, ZIPF.astype("<u2"))
        np.save(file, ZIPF.astype("<u2"))
    with pytest.raises(ValueError, match="holds more than one array"):
        next(raw_ids(str(tmp_path / "a.npy"), np.dtype("<u2")))


def test_both_widths_make_the_same_sequences(make_config: Make, tmp_path: Path) -> None:
    """A folder of raw files and one with a header hold the same ids, whatever each file's width."""
    wide = written(tmp_path / "wide.npy", "<u4", 290)
    ids = np.fromfile(wide, "<u4")
    np.save(tmp_path / "head.npy", ids)
    ids.astype("<u2").tofile(tmp_path / "narrow.bin")
    domains = {name: {"path": str(tmp_path / file)} for name, file in
               (("wide", "wide.npy"), ("head", "head.npy"), ("narrow", "narrow.bin"))}  # fmt: skip
    prepared = prepare(make_config(**domains)).domains
    assert len({domain.digest for domain in prepared.values()}) == 1
    assert prepared["wide"].train_tokens + prepared["wide"].eval_tokens > 3900


def test_init_counts_ids_of_each_file_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    np.save(tmp_path / "d" / "x-00000.npy", ZIPF)
    written(tmp_path / "d" / "x-00001.npy", "<u4", 100_278)
    written(tmp_path / "d" / "x-00002.bin", "<u2", 60_000)
    assert inspect_part(discover([str(tmp_path / "d")])[0]).size == 12_000
    np.save(tmp_path / "none.npy", ZIPF[:0])
    with pytest.raises(UserError, match=r"none\.npy: --data: holds no token id"):
        inspect_part(discover([str(tmp_path / "none.npy")])[0])


def test_init_counts_wide_ids(tmp_path: Path) -> None:
    path = written(tmp_path / "a.npy", "<u4", 100_278)
    assert inspect_part(discover([path])[0]).size == 4000
