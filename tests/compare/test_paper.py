"""The paper's settings in examples/paper: each at two sizes, and cheap enough for what they are to show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opmix_ray.commands.options import at_scale
from opmix_ray.compare.run import factors
from opmix_ray.config import load_config
from opmix_ray.data.prepare import Prepared, prepare
from opmix_ray.runner.forecast import Forecast
from tests.support import ROOT

PAPER = ROOT / "examples" / "paper"
SMALL = sorted(file for file in PAPER.glob("*.yaml") if "." not in file.stem)


def prepared(file: Path, directory: Path, *settings: str) -> tuple[Forecast, Prepared]:
    config = load_config(file, [f"data.cache={directory}", *settings])
    found = prepare(config)
    return Forecast(config, found), found


def shape_of(base: str) -> str:
    """The base run's model as a setting, for a forecast without that run."""
    return f"model.config={json.dumps(load_config(PAPER / base).model.config)}"


@pytest.mark.parametrize("file", SMALL, ids=lambda file: file.stem)
def test_every_setting_comes_at_the_papers_size_too(file: Path) -> None:
    large = load_config(at_scale(file, "gpu"))
    assert len(large.stages) == len(load_config(file).stages)
    assert large.train.gpus_per_worker == 1


@pytest.mark.slow
def test_deciding_costs_at_most_a_twentieth_of_pretraining(tmp_path: Path) -> None:
    forecast, found = prepared(PAPER / "pretrain.yaml", tmp_path)
    assert forecast.searching("opmix") / forecast.training("opmix") <= 0.05
    scale = factors(load_config(PAPER / "pretrain.yaml"), found, ["uniform", "opmix", "swarm", "doremi"])
    assert all(0.7 < factor <= 1 for factor in scale.values())


@pytest.mark.slow
def test_continual_midtraining_saves_two_thirds_of_retraining_with_the_search_counted(tmp_path: Path) -> None:
    forecast, _ = prepared(PAPER / "midtrain.yaml", tmp_path, shape_of("midtrain.base.yaml"))
    ours = forecast.training("opmix") + forecast.searching("opmix")
    assert 1 - ours / forecast.training("retrain") > 0.66


@pytest.mark.slow
def test_a_twentieth_of_self_distillation_is_used_and_no_more_with_the_search_counted(tmp_path: Path) -> None:
    base = [shape_of("instruct.base.yaml"), "base.mixture={glossary: 0.5, general: 0.5}"]
    whole, _ = prepared(PAPER / "instruct.yaml", tmp_path, *base)
    part, _ = prepared(PAPER / "instruct.twentieth.yaml", tmp_path, *base)
    ours = part.training("opmix") + part.searching("opmix")
    assert 0.04 < ours / whole.training("self-distillation") < 0.05
