"""Runs as jobs on a head that wants a token."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from opmix_ray.storage import Storage
from tests.cluster.heads import Head, ray_command
from tests.cluster.machines import wait_for
from tests.object_store import ObjectStore, object_store
from tests.support import ROOT, TinyRun, read_json

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
OPMIX = (sys.executable, "-m", "opmix_ray")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A server whose keys the head and its jobs have in their environment."""
    with object_store(tmp_path_factory.mktemp("s3")) as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment().items():
            patch.setenv(name, value)
        patch.setenv("OPMIX_RAY_LOCAL_CACHE", str(tmp_path_factory.mktemp("local")))
        yield store


@pytest.fixture(scope="module")
def head(store: ObjectStore) -> Iterator[Head]:
    head = Head(cpus=2, dashboard=True)
    yield head
    head.close()


def submitted(head: Head, *words: str) -> tuple[str, ...]:
    """`ray job submit` from the checkout's root, as the README has it."""
    return (*ray_command("job", "submit", "--address", head.dashboard, "--working-dir", "."), "--", *words)


def long(tiny: TinyRun) -> TinyRun:
    tiny.tree["train"] |= {"checkpoint_every": 50, "log_every": 10}
    tiny.tree["stages"] = [{"name": "only", "steps": 800, "start": "uniform", "decide_at": [0.5]}]
    return tiny


def test_logs_stream_as_plain_lines_and_the_job_succeeds_with_the_run(
    head: Head, tiny: TinyRun, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    process = subprocess.Popen(
        submitted(head, *OPMIX, "run", str(long(tiny).write()), "--output", str(output)),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=head.environment,
    )  # fmt: skip
    assert process.stdout is not None
    seen: list[tuple[float, str]] = [(time.monotonic(), line) for line in process.stdout]
    assert process.wait(60) == 0, "".join(line for _, line in seen)
    steps = [(at, line) for at, line in seen if re.match(r"step \d+: loss \d", line)]
    assert len(steps) >= 80
    assert steps[-1][0] - steps[0][0] > 1.5, "the lines came all at once"
    text = "".join(line for _, line in seen)
    assert "decision 0:" in text
    assert "\x1b[2K" not in text, "live bars in a log"
    assert "\r" not in text
    assert read_json(output / "result.json")["steps"] == 800


def test_without_the_token_nothing_can_be_submitted(head: Head) -> None:
    refused = subprocess.run(
        submitted(head, "true"), capture_output=True, text=True, cwd=ROOT, check=False, timeout=120,
        env={**head.environment, "RAY_AUTH_TOKEN_PATH": "", "RAY_AUTH_TOKEN": "another" * 8},
    )  # fmt: skip
    assert refused.returncode != 0
    assert re.search(r"401|403|[Uu]nauthenticated|[Uu]nauthorized|token", refused.stdout + refused.stderr)


def test_the_exit_code_is_the_runs(head: Head, tiny: TinyRun) -> None:
    file = tiny.directory / "wrong.yaml"
    file.write_text(tiny.write().read_text().replace("batch_size: 4", "batch_size: none"))
    command = head.run(*submitted(head, *OPMIX, "run", str(file)))
    assert command.returncode == 1
    assert "error: " in command.stdout + command.stderr
    script = head.run(sys.executable, "examples/submit.py", head.dashboard, *OPMIX, "run", str(file))
    assert script.returncode == 2, script.stderr
    assert "train.batch_size" in script.stdout
    good = head.run(sys.executable, "examples/submit.py", head.dashboard, *OPMIX, "--version")
    assert good.returncode == 0, good.stderr
    assert re.search(r"^opmix \d", good.stdout, re.MULTILINE)


def stopped_at(head: Head, output: str, step: int, name: str, *words: str) -> str:
    """What a job said until it was stopped at a step, or a little later."""
    started = head.run(
        *ray_command("job", "submit", "--address", head.dashboard, "--working-dir", ".", "--no-wait",
                     "--submission-id", name), "--", *words,
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    wait_for(lambda: max((row["step"] for row in metrics(output)), default=0) >= step)
    stopped = head.run(*ray_command("job", "stop", "--address", head.dashboard, name))
    assert stopped.returncode == 0, stopped.stderr
    assert not Storage(output).exists("result.json")
    return head.run(*ray_command("job", "logs", "--address", head.dashboard, name)).stdout


def gone_on_from(said: str) -> int:
    found = re.search(r"resumed from step (\d+) of", said)
    assert found, said
    return int(found[1])


def metrics(output: str) -> list[dict[str, Any]]:
    """The rows that a run has written so far, here or in an object store."""
    return [json.loads(line) for line in Storage(output).lines("metrics.jsonl")]


@pytest.mark.parametrize("place", ["directory", "object store"])
def test_a_job_that_was_stopped_is_finished_by_the_next_with_the_same_output(
    head: Head, store: ObjectStore, tiny: TinyRun, tmp_path: Path, place: str
) -> None:
    """With `--resume`, and without, as after a failure that nobody saw."""
    output = str(tmp_path / "out") if place == "directory" else store.uri("job")
    storage = Storage(output)
    long(tiny).tree["stages"][0] |= {"steps": 4000, "decide_at": [0.15]}  # long after both stops
    words = (*OPMIX, "run", str(tiny.write()), "--output", output)
    first, second = f"first-{tmp_path.name}", f"second-{tmp_path.name}"
    assert "--resume goes on from the last checkpoint" in stopped_at(head, output, 150, first, *words)
    assert gone_on_from(stopped_at(head, output, 750, second, *words, "--resume")) >= 100
    decided = storage.read_text("decisions/000/decision.json")
    finished = head.run(*submitted(head, *words))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert gone_on_from(finished.stdout) >= 700
    assert storage.read_json("result.json")["steps"] == 4000
    assert storage.read_text("decisions/000/decision.json") == decided
    assert store.secret_key not in finished.stdout + finished.stderr
    once_more = head.run(*submitted(head, *words))
    assert once_more.returncode == 0
    assert "holds this run, finished" in once_more.stdout
