"""Raw ids without a header are read at the width that their bytes prove, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from opmix_ray.config import RunConfig
from opmix_ray.data.prepare import prepare
from opmix_ray.errors import UserError
from opmix_ray.init.discover import discover
from opmix_ray.init.look import look
from opmix_ray.sources.token_width import raw_dtype

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


def test_init_counts_wide_ids(tmp_path: Path) -> None:
    path = written(tmp_path / "a.npy", "<u4", 100_278)
    assert look(discover([path])[0]).size == 4000
