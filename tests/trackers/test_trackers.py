"""Trackers get what TensorBoard gets, offline; one that is missing is named before the run begins."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from opmix_ray import trackers
from opmix_ray.errors import UserError
from opmix_ray.runner.check_plan import check_plan
from opmix_ray.trackers import Trackers
from tests.support import TinyRun


def test_none_by_default(tiny: TinyRun) -> None:
    assert not Trackers(tiny.load(), "out")


def test_a_missing_package_is_named(tiny: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    tiny.tree["watch"] = {"aim": {}, "wandb": {"project": "p"}}
    said = [str(error) for error in check_plan(tiny.load())]
    assert said == [
        "watch.wandb: needs the package wandb; pip install 'opmix_ray[wandb]'",
        "watch.aim: needs the package aim; pip install 'opmix_ray[aim]'",
    ]


def test_mlflow_gets_values_and_settings(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    place = (tmp_path / "mlruns").as_uri()
    tiny.tree["watch"] = {"mlflow": {"tracking_uri": place, "experiment_name": "mixtures"}}
    found = Trackers(tiny.load(), "out")
    found.record(3, {"train/loss": 2.5})
    found.record(6, {"train/loss": 2.0, "delivered/code": 0.5})
    found.close(failed=False)
    client = mlflow.tracking.MlflowClient(place)
    experiment = client.get_experiment_by_name("mixtures")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")] == [
        (3, 2.5),
        (6, 2.0),
    ]
    assert run.data.params["train.batch_size"] == "4"


def test_wrong_arguments_are_the_users(tiny: TinyRun) -> None:
    pytest.importorskip("mlflow")
    tiny.tree["watch"] = {"mlflow": {"no_such": 1}}
    with pytest.raises(UserError, match=r"watch.mlflow = \{'no_such': 1.*cannot be started: .*no_such"):
        Trackers(tiny.load(), "out")


@pytest.mark.slow
def test_wandb_writes_offline(
    tiny: TinyRun, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tiny.tree["watch"] = {"wandb": {"project": "p", "mode": "offline", "dir": str(tmp_path)}}
    found = Trackers(tiny.load(), "out")
    found.record(3, {"train/loss": 2.5})
    found.close(failed=False)
    deadline = time.monotonic() + 120
    while not (files := list((tmp_path / "wandb").rglob("*.wandb"))):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert b"train/loss" in files[0].read_bytes()


@pytest.mark.long
def test_aim_gets_values(tiny: TinyRun, tmp_path: Path) -> None:
    aim = pytest.importorskip("aim")
    tiny.tree["watch"] = {"aim": {"repo": str(tmp_path)}}
    found = Trackers(tiny.load(), "out")
    found.record(3, {"train/loss": 2.5})
    found.close(failed=False)
    (run,) = aim.Repo(str(tmp_path)).iter_runs()
    assert "ray/tune/train/loss" in {metric.name for metric in run.metrics()}
    assert os.path.isdir(tmp_path / ".aim")
