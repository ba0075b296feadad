"""Damaged files of every format end in a `UserError` of one line, or are read; nothing else, and no crash."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from opmix_ray.data.store import TokenStore
from opmix_ray.errors import UserError
from opmix_ray.runner.validate import validate
from tests.fuzz import feeds
from tests.fuzz.damage import broken
from tests.fuzz.feeds import FEEDS
from tests.fuzz.files import FILES, PROBE
from tests.fuzz.trial import tried
from tests.support import TinyRun

INPUTS = 1000  # of all quick kinds together; `make fuzz` takes 5,000 of all
QUICK = [*FILES, *PROBE, "wrong rows", "run.yaml", "sweep"]
FEW = 30  # of each other kind


def _outcomes(name: str, count: int, directory: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    for number in range(count):
        outcome = tried(FEEDS[name], random.Random(f"{name}/{number}"), directory)
        assert outcome.kind != "unclear", f"{name}/{number}: {outcome.said}"
        found[outcome.kind] += 1
    return found


@pytest.mark.parametrize("name", FEEDS)
@pytest.mark.seconds
def test_what_is_not_damaged_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the damaged ones are refused for another reason than their damage."""
    for way in ("broken", "retyped"):
        monkeypatch.setattr(feeds, way, lambda whole, rng: whole)
    for number in range(3):
        outcome = tried(FEEDS[name], random.Random(number), tmp_path)
        assert outcome.kind == "read", outcome.said


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.seconds
def test_a_damaged_file_is_read_or_refused(name: str, tmp_path: Path) -> None:
    each = INPUTS // len(QUICK)
    assert _outcomes(name, each, tmp_path)["refused"] > each // 4


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FEEDS if name not in QUICK])
def test_a_damaged_directory_is_read_or_refused(name: str, tmp_path: Path) -> None:
    _outcomes(name, FEW, tmp_path)


def test_what_is_no_clear_error_is_found(tmp_path: Path) -> None:
    def fail(rng: random.Random, directory: Path) -> None:
        raise KeyError("mixture")

    def unclear(rng: random.Random, directory: Path) -> None:
        raise UserError("", file="")

    assert "KeyError" in tried(fail, random.Random(0), tmp_path).said
    assert tried(unclear, random.Random(0), tmp_path).kind == "unclear"


@pytest.mark.seconds
def test_a_prepared_shard_or_manifest_that_broke(tiny: TinyRun, tmp_path: Path) -> None:
    """What is not refused is read to the end, in the shape that the manifest says."""
    source = Path(validate(tiny.load()).domains["code"].path)
    good = {file.name: file.read_bytes() for file in source.iterdir()}
    rng, refused = random.Random(7), 0
    for _ in range(60):
        name = rng.choice(["manifest.json", "train-00000.arrow"])
        for file, content in good.items():
            (tmp_path / file).write_bytes(broken(content, rng) if file == name else content)
        error: UserError | None = None
        try:
            store = TokenStore.open(str(tmp_path), "train")
            ids, mask = store.batch(range(len(store)))
        except UserError as found:
            error, refused = found, refused + 1
        if error is None:
            assert ids.shape == mask.shape == (len(store), 32)
        else:
            assert str(tmp_path) in str(error)
            assert error.remedy, error
    assert 15 < refused < 60
