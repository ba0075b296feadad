"""Broken files of every format end in a `UserError` of one line, or are read; nothing else, and no crash."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opmix_ray.config import SourceConfig, load_config
from opmix_ray.data.store import TokenStore
from opmix_ray.errors import UserError, UserErrors
from opmix_ray.model.probe import load_probe
from opmix_ray.runner.validate import validate
from opmix_ray.sources.source import iter_documents
from tests.fuzz import COLUMNS, FILES, PROBE, broken
from tests.support import ROOT, TinyRun

INPUTS = 2500  # of all kinds together
Feed = Callable[[random.Random, Path], Any]


def _source(name: str) -> Feed:
    def feed(rng: random.Random, directory: Path) -> None:
        (directory / name).write_bytes(broken(rng.choice(FILES[name]), rng))
        columns = {} if name.endswith(".npy") else rng.choice(COLUMNS)
        for document in iter_documents(SourceConfig(path=str(directory / name), **columns), "d"):
            document.length()

    return feed


def _probe(name: str) -> Feed:
    def feed(rng: random.Random, directory: Path) -> None:
        for file, content in PROBE.items():
            (directory / file).write_bytes(broken(content, rng) if file == name else content)
        load_probe(directory)

    return feed


def _yaml(rng: random.Random, directory: Path) -> None:
    file = directory / "run.yaml"
    file.write_bytes(broken((ROOT / "examples/quickstart.yaml").read_bytes(), rng))
    load_config(file)


FEEDS: dict[str, Feed] = {
    **{name: _source(name) for name in FILES},
    **{name: _probe(name) for name in PROBE},
    "run.yaml": _yaml,
}


@pytest.mark.parametrize("name", FEEDS)
def test_a_broken_file_is_read_or_refused(name: str, tmp_path: Path) -> None:
    refused = 0
    for number in range(INPUTS // len(FEEDS)):
        try:
            FEEDS[name](random.Random(f"{name}/{number}"), tmp_path)
        except UserError as error:
            refused += 1
            for each in error.errors if isinstance(error, UserErrors) else [error]:
                line = str(each)
                assert "\n" not in line
                assert str(tmp_path) in line or "data.domains.d" in line, line
    assert refused > INPUTS // len(FEEDS) // 4


def test_a_prepared_shard_or_manifest_that_broke(tiny: TinyRun, tmp_path: Path) -> None:
    source = Path(validate(tiny.load()).domains["code"].path)
    good = {file.name: file.read_bytes() for file in source.iterdir()}
    rng = random.Random(7)
    for _ in range(60):
        name = rng.choice(["manifest.json", "train-00000.arrow"])
        for file, content in good.items():
            (tmp_path / file).write_bytes(broken(content, rng) if file == name else content)
        with contextlib.suppress(UserError):
            store = TokenStore.open(str(tmp_path), "train")
            store.batch(range(len(store)))
