"""Runs that are not finished, or whose files are gone or broken: the page shows what there is and says what is not."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from opmix_ray.report import write_report
from opmix_ray.storage import Storage
from tests.report.reading import Page

FILES = ("config.yaml", "state.json", "metrics.jsonl", "mixture.json", "result.json")
PARTS = ("decision.json", "law.json", "trials.jsonl")


def report(storage: Storage) -> Page:
    page = Page(Path(write_report(storage)).read_text(encoding="utf-8"))
    assert page.errors == []
    return page


@pytest.mark.parametrize("name", [*FILES, *(f"decisions/001/{part}" for part in PARTS)])
@pytest.mark.seconds
def test_one_file_is_missing(copy: Storage, name: str) -> None:
    copy.delete(name)
    assert "Mixture over time" in report(copy).text


@pytest.mark.parametrize("name", [*FILES, *(f"decisions/001/{part}" for part in PARTS)])
@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "null\n", "\x00\x01", '{"kind": 3, "step": "x"}\n'])
@pytest.mark.seconds
def test_one_file_is_broken(copy: Storage, name: str, content: str) -> None:
    copy.write_text(name, content)
    assert "Mixture over time" in report(copy).text


def test_a_file_that_is_not_text(copy: Storage) -> None:
    copy.write_bytes("config.yaml", b"\xff\xfe\x00\x81")
    assert "config.yaml cannot be read" in report(copy).text


def test_a_run_that_has_just_begun(full: Storage, tmp_path: Path) -> None:
    begun = Storage(str(tmp_path))
    begun.write_text("config.yaml", full.read_text("config.yaml"))
    text = report(begun).text
    assert "not finished" in text
    assert "0 of 600 planned steps" in text
    assert "No decision about the mixture has been made." in text
    assert "result.json is not there yet" in text


def test_a_decision_in_the_making(copy: Storage) -> None:
    copy.delete("result.json")
    copy.delete("decisions/001/decision.json")
    copy.delete("decisions/001/law.json")
    text = report(copy).text
    assert "Decision 001, not finished" in text
    assert "in the making, 10 candidates scored" in text


def test_a_search_is_not_a_run_that_stopped(copy: Storage) -> None:
    for name in ("result.json", "metrics.jsonl", "decisions/001"):
        copy.delete(name)
    copy.write_json("state.json", copy.read_json("state.json") | {"done": 0, "step": 0, "finished": False})
    text = report(copy).text
    assert (
        "was asked what to train on next, for 300 steps (76,800 tokens) on 4 domains; nothing was trained"
        in text
    )
    assert "Deciding cost" in text
    for absent in ("not finished", "not there yet", "planned step", "Tokens delivered", "n/a of training"):
        assert absent not in text


def test_epochs_are_not_invented_before_the_end(copy: Storage) -> None:
    copy.delete("result.json")
    assert "Epochs are counted when the run is finished." in report(copy).text


def _every(value: object, change: Callable[[float], object]) -> object:
    if isinstance(value, dict):
        return {key: _every(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_every(item, change) for item in value]
    return change(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


@pytest.mark.parametrize("value", [math.nan, math.inf, None, 0, -1e300, "x"])
def test_every_number_is_nonsense(copy: Storage, value: object) -> None:
    names = [name for name in copy.names(recursive=True) if name.endswith((".json", ".jsonl"))]
    for name in names:
        lines = [json.dumps(_every(json.loads(line), lambda _: value)) for line in _documents(copy, name)]
        copy.write_text(name, "\n".join(lines) + "\n")
    assert "Mixture over time" in report(copy).text


def _documents(storage: Storage, name: str) -> list[str]:
    return storage.lines(name) if name.endswith(".jsonl") else [storage.read_text(name)]


_JUNK: list[object] = [
    None,
    0,
    -1,
    "x",
    "",
    [],
    {},
    [1],
    {"a": 1},
    True,
    math.nan,
    1e300,
    [[]],
    {"a": {"b": None}},
]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.seconds
def test_a_part_of_every_file_is_of_another_kind(copy: Storage, seed: int) -> None:
    rng = random.Random(seed)
    names = [name for name in copy.names(recursive=True) if name.endswith((".json", ".jsonl"))]
    for name in names:
        lines = [json.dumps(_spoilt(json.loads(line), rng)) for line in _documents(copy, name)]
        copy.write_text(name, "\n".join(lines) + "\n")
    assert "Mixture over time" in report(copy).text


def _spoilt(value: object, rng: random.Random) -> object:
    """The value with some parts replaced by others, at any depth."""
    if rng.random() < 0.04:
        return rng.choice(_JUNK)
    if isinstance(value, dict):
        return {key: _spoilt(item, rng) for key, item in value.items()}
    if isinstance(value, list):
        return [_spoilt(item, rng) for item in value]
    return value


def test_a_configuration_of_another_version(copy: Storage) -> None:
    copy.write_text("config.yaml", copy.read_text("config.yaml") + "new_key: 1\n")
    text = report(copy).text
    assert "config.yaml is not a configuration of this version" in text
    assert "new_key: 1" in text
    assert "A language model was trained for 300 steps" in text
    for row in copy.read_json("result.json")["delivered"].values():
        assert f"{row['tokens']:,}" in text
