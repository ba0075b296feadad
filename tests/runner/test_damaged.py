"""What is damaged between two parts of a run, and a run that diverges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from opmix_ray.decision.progress import Progress
from opmix_ray.output.state import BEFORE
from opmix_ray.runner.runner import run
from tests import support
from tests.cli.conftest import Opmix
from tests.cli.conftest import opmix as opmix
from tests.support import TinyRun, read_json


class Stopped(Exception):
    """Ends a run at its first decision."""


class Said(Progress):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def stop(*_: Any) -> Any:
    raise Stopped


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


@pytest.mark.slow
@pytest.mark.promise
@pytest.mark.timeout(1800)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_leads_to_the_same_model(tiny: TinyRun) -> None:
    tiny.tree["search"]["trials"] = 4
    run(tiny.load(output="undisturbed"))
    config, said = tiny.load(), Said()
    with pytest.raises(Stopped):
        run(config, decide=stop)
    output = tiny.directory / "out"
    checkpoint = output / read_json(output / "state.json")["checkpoint"]
    assert read_json(output / BEFORE)["done"] < read_json(output / "state.json")["done"]
    assert len(list(checkpoint.parent.glob("checkpoint_2*"))) == 2, "the last two are kept"
    flip_a_bit(checkpoint / "model" / "model.safetensors")
    run(config, resume=True, progress=said)
    assert sum("has a damaged model.safetensors" in line for line in said.lines) >= 1, said.lines
    assert "training goes on from step 3" in said.lines
    whole = (tiny.directory / "undisturbed" / "model" / "model.safetensors").read_bytes()
    assert (output / "model" / "model.safetensors").read_bytes() == whole
    flip_a_bit(output / "model" / "model.safetensors")
    ended = support.opmix(
        "run", str(tiny.write()), "--output", str(tiny.directory / "next"), "--continue", str(output)
    )
    assert ended.returncode == 2, ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert "has a damaged model.safetensors" in ended.stderr


@pytest.mark.slow
@pytest.mark.promise
@pytest.mark.timeout(1800)
def test_a_run_that_diverged_is_not_tried_again_and_goes_on_with_a_lower_rate(tiny: TinyRun) -> None:
    tiny.tree["train"]["checkpoint_every"] = 50
    tiny.tree["stages"][0]["decide_at"] = []
    tiny.tree["train"]["optimizer"] = {"learning_rate": 1e30, "clip_norm": None}
    output = tiny.directory / "out"
    ended = support.opmix("run", str(tiny.write()), "--output", str(output))
    assert ended.returncode == 2, ended.stderr
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert "train.optimizer.learning_rate = 1e+30: the training loss is" in ended.stderr
    assert "goes on" not in ended.stdout, "it was trained once"
    assert not list(output.glob("train/*/checkpoint_2*"))
    tiny.tree["train"]["batch_size"] = 8
    again = support.opmix("run", str(tiny.write()), "--output", str(output), "--resume")
    assert again.returncode == 2, "nothing but what the line advises may change"
    tiny.tree["train"]["batch_size"] = 4
    tiny.tree["train"]["optimizer"] = {"learning_rate": 0.003}
    again = support.opmix("run", str(tiny.write()), "--output", str(output), "--resume")
    assert again.returncode == 0, again.stderr
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 12


def test_there_must_be_a_run_to_resume(opmix: Opmix, tiny: TinyRun) -> None:
    line = opmix("run", tiny.write(), "--output", tiny.directory / "none", "--resume").only_error()
    assert "holds no run to resume; leave --resume out to begin one" in line
    assert not (tiny.directory / "none").exists()
