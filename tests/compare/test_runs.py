"""opmix report A B: which ends lower, what was promised and came, what makes the pair unfair; and runs side by side."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from opmix_ray.compare import compare
from opmix_ray.compare.runs import write_comparison
from opmix_ray.errors import UserError
from opmix_ray.report.gather import gather
from opmix_ray.storage import Storage
from tests.cluster.machines import wait_for
from tests.report.reading import Page
from tests.report.synthetic import PLAIN, make_run
from tests.support import PATIENCE, ROOT, TinyRun, read_json


def runs(place: Path) -> list[Storage]:
    """One with a decision, one that trained under uniform."""
    made = [
        make_run(place / name, decisions=1, trials=6, domains=PLAIN[:3], steps=60, seed=seed)
        for seed, name in enumerate(("decided", "uniform"))
    ]
    plain = {name: 1 / 3 for name in PLAIN[:3]}
    for name in ("mixture.json", "state.json"):
        content = made[1].read_json(name)
        for entry in [*content.get("history", []), *content.get("mixtures", [])]:
            entry["mixture"] = plain
        made[1].write_json(name, content)
    return made


def test_the_verdict_is_the_difference_in_perplexity(tmp_path: Path) -> None:
    pair = runs(tmp_path)
    found = write_comparison(pair)
    ends = [gather(storage).weighted(gather(storage).evaluations[-1]) for storage in pair]
    change = 100 * (math.exp(ends[0] - ends[1]) - 1)
    way = "lower" if change <= 0 else "higher"
    assert f"{abs(change):.1f}\u00a0% {way} in perplexity than uniform" in found["verdict"]
    text = Path(found["report"]).read_text(encoding="utf-8")
    page = Page(text)
    assert page.errors == []
    assert "Against uniform the law promised" in page.text
    assert f"{ends[1] - ends[0]:.4f}".replace("-", "−") in page.text
    assert len(re.findall(r'id="(runs|loss|mixtures)"', text)) == 3
    assert "opmix compare runs several" in page.text


def test_what_is_unfair_is_said(tmp_path: Path) -> None:
    pair = runs(tmp_path)
    state = pair[1].read_json("result.json")
    state["ledger"]["main"]["flops"] *= 3
    pair[1].write_json("result.json", state)
    text = Page(Path(write_comparison(pair)["report"]).read_text(encoding="utf-8")).text
    assert re.search(r"uniform took [\d.]+ times the FLOPs of decided", text)
    pair[1].delete("result.json")
    verdict = write_comparison(pair)["verdict"]
    assert verdict == "decided is not comparable yet with uniform: both must be finished."


def test_runs_that_share_no_set_or_are_one_are_refused(tmp_path: Path) -> None:
    pair = runs(tmp_path)
    other = make_run(tmp_path / "other", decisions=1, trials=6, domains=PLAIN[3:], steps=60)
    with pytest.raises(UserError, match="share no evaluation set"):
        write_comparison([pair[0], other])
    with pytest.raises(UserError, match="named twice"):
        write_comparison([pair[0], pair[0]])


def command(file: Path, output: Path) -> list[str]:
    words = ["compare", str(file), "--seeds", "2", "--strategies", "uniform,odm", "--parallel", "2"]
    return [sys.executable, "-m", "opmix_ray", *words, "--output", str(output)]


def runs_below(output: Path) -> list[int]:
    """Processes whose command names a run of the comparison."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "run" in words and any(str(output / "runs") in word for word in words):
            found.append(process.pid)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_same_rows_and_a_command_that_is_ended_takes_its_runs_along(tiny: TinyRun) -> None:
    tiny.tree["stages"][0] |= {"steps": 300, "decide_at": []}
    tiny.tree["train"] |= {"checkpoint_every": None, "log_every": 20}
    file, output = tiny.write(), tiny.directory / "beside"
    environment = os.environ | {"RAY_ADDRESS": "local"}
    first = subprocess.Popen(
        command(file, output), cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )  # fmt: skip
    wait_for(lambda: list(output.glob("runs/*/*/metrics.jsonl")))
    assert len(runs_below(output)) == 2
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate(timeout=PATIENCE)
    assert first.returncode not in (0, 2), said
    assert runs_below(output) == []
    assert not (output / "compare.json").exists() or not read_json(output / "compare.json")["complete"]

    done = subprocess.run(
        command(file, output), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    beside = read_json(output / "compare.json")
    assert [(row["strategy"], row["seed"]) for row in beside["rows"]] == [
        ("uniform", 3), ("odm", 3), ("uniform", 4), ("odm", 4),
    ]  # fmt: skip
    alone = compare(tiny.load(), ["uniform", "odm"], seeds=2, output=str(tiny.directory / "alone"))
    for mine, other in zip(beside["rows"], alone["rows"], strict=True):
        assert mine["losses"] == pytest.approx(other["losses"], abs=1e-5)
        assert (mine["steps"], mine["tokens"]) == (other["steps"], other["tokens"])
