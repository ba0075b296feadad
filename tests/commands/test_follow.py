"""opmix watch shows where a run stands, and ends when the run does."""

from __future__ import annotations

import fcntl
import io
import json
import threading
import time
from pathlib import Path

from rich.console import Console

from opmix_ray.commands.follow import Follower, follow, page
from opmix_ray.output.state import sealed
from opmix_ray.storage import Storage
from tests.cli.conftest import Opmix
from tests.cli.conftest import opmix as opmix


def shown(run: Storage) -> str:
    text = io.StringIO()
    Console(file=text, width=120).print(page(Follower(run.uri).snapshot()))
    return text.getvalue()


def unfinish(run: Storage) -> None:
    run.write_json("state.json", sealed(run.read_json("state.json") | {"finished": False, "done": 3}))


def test_a_finished_run_is_shown_once(run: Storage, opmix: Opmix) -> None:
    ended = opmix("watch", run.uri)
    assert ended.code == 0
    (line,) = ended.out.splitlines()
    assert line.startswith("step 60 of 60; finished; loss ")
    assert "held-out loss" in line


def test_the_page_has_shares_losses_and_decisions(run: Storage) -> None:
    text = shown(run)
    assert "60 of 60 steps" in text
    for domain, share in run.read_json("mixture.json")["mixture"].items():
        assert any(line.startswith(domain) and f"{share:.3f}" in line for line in text.splitlines())
    assert text.count("decision ") == 2


def test_for_programs(run: Storage, opmix: Opmix) -> None:
    found = json.loads(opmix("watch", run.uri, "--json").out)
    assert (found["step"], found["ended"]) == (60, "finished")


def until(text: io.StringIO, lines: int) -> None:
    """Wait until so many lines were written."""
    deadline = time.monotonic() + 120
    while text.getvalue().count("\n") < lines:
        assert time.monotonic() < deadline, text.getvalue()
        time.sleep(0.01)


def test_it_follows_until_the_end(run: Storage) -> None:
    unfinish(run)
    lines = run.lines("metrics.jsonl")
    run.write_text("metrics.jsonl", "\n".join(lines[:6]) + "\n")
    text = io.StringIO()
    with open(Path(run.uri) / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        console = Console(file=text, width=1000)
        ended: list[str] = []
        thread = threading.Thread(target=lambda: ended.append(follow(run.uri, 0.05, console)))
        thread.start()
        until(text, 1)
        assert thread.is_alive()
        run.write_text("metrics.jsonl", "\n".join(lines) + "\n")
        until(text, 2)
        run.write_json("state.json", sealed(run.read_json("state.json") | {"finished": True}))
        thread.join(120)
    assert ended == ["finished"]
    steps = [line.split(";")[0] for line in text.getvalue().splitlines()]
    assert len(steps) >= 3
    assert steps[-1] == "step 60 of 60"


def test_a_run_that_nobody_works_on_has_stopped(run: Storage, opmix: Opmix) -> None:
    unfinish(run)
    (Path(run.uri) / ".lock").touch()
    ended = opmix("watch", run.uri, "--interval", "0.1")
    assert ended.code == 1
    assert "stopped" in ended.out


def test_what_is_no_run(tmp_path: Path, opmix: Opmix) -> None:
    assert "is not the output of a run" in opmix("watch", tmp_path).only_error()
