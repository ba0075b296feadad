"""A whole run whose data, cache and output are in an object store; killed in the middle, it goes on from there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from opmix_ray.storage import Storage
from tests.object_store import ObjectStore, object_store
from tests.support import DOMAINS, PATIENCE, ROOT, TinyRun, opmix

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Iterator[ObjectStore]:
    """A server with the domains' files in it, its keys in this process's environment."""
    with object_store(tmp_path_factory.mktemp("s3")) as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment().items():
            patch.setenv(name, value)
        patch.setenv("OPMIX_RAY_LOCAL_CACHE", str(tmp_path_factory.mktemp("local")))
        source = Storage(store.uri("in"))
        for name in DOMAINS:
            source.write_bytes(f"{name}.jsonl", (tiny_data / f"{name}.jsonl").read_bytes())
        yield store


def _configured(store: ObjectStore, data: Path, directory: Path) -> Path:
    run = TinyRun(data, directory)
    run.tree["data"]["cache"] = store.uri("cache")
    for name, source in run.tree["data"]["domains"].items():
        source["path"] = store.uri(f"in/{name}.jsonl")
    return run.write()


@pytest.fixture(scope="module")
def undisturbed(store: ObjectStore, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a run that went to its end."""
    file = _configured(store, tiny_data, tmp_path_factory.mktemp("config"))
    done = opmix("run", str(file), "--output", store.uri("one"))
    assert done.returncode == 0, done.stderr
    assert store.secret_key not in done.stdout + done.stderr
    assert store.uri("one/report.html") in done.stdout
    return store.uri("one")


def _outcome(output: str) -> dict[str, Any]:
    storage = Storage(output)
    result = storage.read_json("result.json")
    rows = [json.loads(line) for line in storage.lines("metrics.jsonl")]
    return {
        "mixture": result["final_mixture"],
        "losses": [row["losses"] for row in rows if row["kind"] == "evaluation"],
        "train": [(row["step"], row["loss"], row["delivered"]) for row in rows if row["kind"] == "train"],
        "ratios": storage.read_text("decisions/000/ratios.csv"),
    }


def test_everything_is_there_and_nothing_holds_the_keys(undisturbed: str, store: ObjectStore) -> None:
    storage = Storage(undisturbed)
    names = storage.names(recursive=True)
    for wanted in (
        "config.yaml",
        "state.json",
        "result.json",
        "report.html",
        "mixture.json",
        "model/config.json",
    ):
        assert wanted in names
    for name in DOMAINS:
        assert f"decisions/000/probes/{name}/adapter_model.safetensors" in names
    keys = (store.secret_key.encode(), store.access_key.encode())
    system, root = storage.filesystem
    for info in system.get_file_info([f"{root}/{name}" for name in names]):
        if info.is_file:
            content = storage.read_bytes(info.path.removeprefix(f"{root}/"))
            assert not any(key in content for key in keys), info.path
    with storage.local("model") as directory:
        assert AutoModelForCausalLM.from_pretrained(directory).num_parameters() > 0


def test_status_and_report_work_from_there(undisturbed: str) -> None:
    status = opmix("status", undisturbed, "--json")
    assert status.returncode == 0, status.stderr
    found = json.loads(status.stdout)
    assert (found["finished"], found["step"], found["next"]) == (True, 12, None)
    storage = Storage(undisturbed)
    storage.delete("report.html")
    report = opmix("report", undisturbed, "--figures")
    assert report.returncode == 0, report.stderr
    assert "<html" in storage.read_text("report.html")
    assert storage.names("figures")


def test_the_same_command_again_finds_it_finished(
    undisturbed: str, store: ObjectStore, tiny_data: Path, tmp_path: Path
) -> None:
    again = opmix("run", str(_configured(store, tiny_data, tmp_path)), "--output", undisturbed)
    assert again.returncode == 0, again.stderr
    assert "holds this run, finished" in again.stdout


@pytest.mark.parametrize("moment", ["decisions/000/probes/code/probe.json", "decisions/000/trials.jsonl"])
def test_killed_in_a_decision_it_goes_on(
    undisturbed: str, store: ObjectStore, tiny_data: Path, tmp_path: Path, moment: str
) -> None:
    file = _configured(store, tiny_data, tmp_path)
    output = store.uri(f"killed-{Path(moment).stem}")
    run = TinyRun(tiny_data, tmp_path).command("run", str(file), "--output", output, "--json")
    process = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    storage, deadline = Storage(output), time.monotonic() + PATIENCE
    while not storage.exists(moment):
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not storage.exists("result.json")
    resumed = opmix("run", str(file), "--output", output, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    found, expected = _outcome(output), _outcome(undisturbed)
    assert found["ratios"] == expected["ratios"]
    assert found["mixture"] == pytest.approx(expected["mixture"], abs=1e-6)
    for mine, theirs in zip(found["train"], expected["train"], strict=True):
        assert mine == (theirs[0], pytest.approx(theirs[1], abs=1e-5), theirs[2])
    assert found["losses"] == [pytest.approx(losses, abs=1e-5) for losses in expected["losses"]]
