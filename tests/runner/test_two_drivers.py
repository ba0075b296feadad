"""A driver after another on one output in an object store: after one that still runs, was frozen, or was killed.

The later one goes on, and ends bit for bit as an undisturbed run; the earlier one ends in a line and writes nothing
more. A driver that finds other files than the run began with goes on with nothing.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from opmix_ray.sources.source import Document
from opmix_ray.storage import Storage
from tests.object_store import ObjectStore, object_store
from tests.support import DEMO, PATIENCE, ROOT, TinyRun, write_tiny_data

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
SET = "addresses.jsonl"
_BACK = "put the old files back, or begin another run with `opmix run --continue`"
_TAKEN = "another opmix process has taken this output over"
_WRITES = re.compile(r'"(PUT|POST|DELETE) /')


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the server was asked, a line for every request."""
    return tmp_path_factory.mktemp("s3") / "s3.log"


@pytest.fixture(scope="module")
def store(log: Path) -> Iterator[ObjectStore]:
    """A server, its keys in this process's environment."""
    with object_store(log.parent) as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment().items():
            patch.setenv(name, value)
        yield store


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three domains and a set for evaluation alone."""
    folder = write_tiny_data(tmp_path_factory.mktemp("files"))
    with gzip.open(DEMO / f"{SET}.gz", "rt", encoding="utf-8") as source:
        (folder / SET).write_text("".join(islice(source, 20)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def address(store: ObjectStore) -> Iterator[str]:
    """A Ray that all drivers join, and that has the store's keys."""
    # On a busy machine one does not always start in the time that Ray gives it.
    for left in reversed(range(10)):
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=8, include_dashboard=False)
            break
        except Exception:
            cluster.shutdown()
            if not left:
                raise
    yield str(cluster.address)
    cluster.shutdown()


class Driver:
    """`opmix run` on an output in the store, as a process of its own."""

    def __init__(self, address: str, data: Path, directory: Path, output: str, *more: str) -> None:
        run = TinyRun(data, directory)
        run.tree["evaluation"]["sets"] = {"addresses": {"path": str(data / SET)}}
        run.tree["stages"][0] |= {"steps": 120}
        run.tree["search"] |= {"evaluators": 1}
        run.tree["train"] |= {"checkpoint_every": 10, "log_every": 5}
        self.storage = Storage(output)
        file, words = str(run.write()), ["--output", output, "--address", address, "--json", *more]
        self.process = subprocess.Popen(
            run.command("run", file, *words),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self.thaw()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def wait(self, moment: Callable[[Storage], bool]) -> None:
        """Until the output shows the moment, which must come before the end."""
        deadline = time.monotonic() + PATIENCE
        while not moment(self.storage):
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.3)  # a look is two requests to the server

    def freeze(self) -> None:
        """Stop the process where it stands; what it started goes on without it."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)

    def end(self) -> tuple[int, list[str]]:
        """Its exit code, and what it said on stderr."""
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors.splitlines()


def _trains(storage: Storage) -> bool:
    return len(storage.lines("metrics.jsonl")) >= 4


def _searches(storage: Storage) -> bool:
    return len(storage.lines("decisions/000/trials.jsonl")) >= 2


def _outcome(storage: Storage) -> dict[str, Any]:
    """What a run came to, bit for bit, without what depends on the clock."""
    state, result = storage.read_json("state.json"), storage.read_json("result.json")
    place = state["checkpoint"]
    wanted = re.compile(r".*\.(safetensors|pt|csv)|mixture\.json")
    names = [name for name in storage.names(recursive=True) if wanted.fullmatch(name)]
    names = [name for name in names if not name.startswith("train/") or name.startswith(f"{place}/")]
    rows = [json.loads(line) for line in storage.lines("metrics.jsonl")]
    return {
        "objects": {
            name.replace(place, "checkpoint"): hashlib.sha256(storage.read_bytes(name)).hexdigest()
            for name in names
        },
        "mixture": result["final_mixture"],
        "losses": [row["losses"] for row in rows if row["kind"] == "evaluation"],
        "train": [(row["step"], row["loss"], row["delivered"]) for row in rows if row["kind"] == "train"],
        "curves": state["curves"],
    }


@pytest.fixture(scope="module")
def undisturbed(
    store: ObjectStore, address: str, files: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    with Driver(address, files, tmp_path_factory.mktemp("alone"), store.uri("alone")) as driver:
        code, errors = driver.end()
    assert code == 0, errors
    found = _outcome(driver.storage)
    ends = {name.rpartition("/")[2] for name in found["objects"]}
    assert ends >= {"model.safetensors", "adapter_model.safetensors", "optimizer.pt", "rng.pt", "ratios.csv"}
    return found


def _assert_ended_in_one_line(driver: Driver) -> None:
    code, errors = driver.end()
    assert (code, len(errors)) == (2, 1), "\n".join(errors)
    assert errors[0].startswith("error: s3://")
    assert _TAKEN in errors[0]


def _end_well(driver: Driver, undisturbed: dict[str, Any]) -> None:
    code, errors = driver.end()
    assert code == 0, errors
    assert _outcome(driver.storage) == undisturbed


def test_one_that_was_frozen_while_it_trained_writes_nothing_more(
    store: ObjectStore, address: str, undisturbed: dict[str, Any], files: Path, tmp_path: Path, log: Path
) -> None:
    output = store.uri("frozen")
    with Driver(address, files, tmp_path, output) as first:
        first.wait(_trains)
        first.freeze()
        with Driver(address, files, tmp_path, output, "--resume") as second:
            _end_well(second, undisturbed)
        before = log.stat().st_size  # from here nobody else asks the server for anything
        first.thaw()
        _assert_ended_in_one_line(first)
    asked = log.read_bytes()[before:].decode().splitlines()
    assert any("/.writer/token" in line for line in asked)
    assert [line for line in asked if _WRITES.search(line)] == []
    assert _outcome(second.storage) == undisturbed


def test_the_later_one_takes_over_while_the_first_searches(
    store: ObjectStore, address: str, undisturbed: dict[str, Any], files: Path, tmp_path: Path
) -> None:
    output = store.uri("searching")
    with Driver(address, files, tmp_path, output) as first:
        first.wait(_searches)
        first.freeze()  # it might be done before the second has come up
        token = first.storage.read_bytes(".writer/token")
        with Driver(address, files, tmp_path, output, "--resume") as second:
            second.wait(lambda storage: storage.read_bytes(".writer/token") != token)
            first.thaw()
            _assert_ended_in_one_line(first)
            _end_well(second, undisturbed)


def test_other_files_after_a_kill_are_refused_and_the_old_ones_anywhere_go_on(
    store: ObjectStore, address: str, undisturbed: dict[str, Any], files: Path, tmp_path: Path
) -> None:
    output, here, there = store.uri("killed"), tmp_path / "here", tmp_path / "there"
    shutil.copytree(files, here)
    with Driver(address, here, tmp_path, output) as first:
        first.wait(_searches)
        first.process.kill()
        first.process.wait()
    storage = first.storage
    left = [storage.read_bytes(name) for name in ("state.json", ".writer/token")]

    rows = _rows(here / SET)
    _write(here / SET, [*rows[:-1], {"text": rows[0]["text"][::-1]}])
    assert f": evaluation.sets.addresses: holds other text than when this run began; {_BACK}" in _refused(
        address, here, tmp_path, output
    )
    shutil.copy(files / SET, here)

    rows = _rows(here / "mathematics.jsonl")
    held = next(number for number, row in enumerate(rows) if _is_held_out(row))
    others = ({"text": f"{rows[held]['text']} {number}"} for number in range(10_000))
    rows[held] = next(filter(_is_held_out, others))
    _write(here / "mathematics.jsonl", rows)
    line = "data.domains.mathematics: its held-out documents are not those that this run began with"
    assert f": {line}; {_BACK}" in _refused(address, here, tmp_path, output)

    assert [storage.read_bytes(name) for name in ("state.json", ".writer/token")] == left
    shutil.rmtree(here)
    shutil.copytree(files, there)
    with Driver(address, there, tmp_path, output, "--resume") as second:
        _end_well(second, undisturbed)


def _refused(address: str, data: Path, directory: Path, output: str) -> str:
    """The one line with which a driver refuses to go on."""
    with Driver(address, data, directory, output, "--resume") as driver:
        code, errors = driver.end()
    assert (code, len(errors)) == (2, 1), "\n".join(errors)
    return errors[0]


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _is_held_out(row: dict[str, Any]) -> bool:
    return Document(text=row["text"]).digest() / 2**64 < 0.1
