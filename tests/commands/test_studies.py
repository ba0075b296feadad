"""Decisions as Optuna studies: read back by Optuna, and by optuna-dashboard where it is installed."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from opmix_ray.storage import Storage
from tests.cli.conftest import Opmix
from tests.cli.conftest import opmix as opmix


def test_every_decision_is_a_study_with_its_trials(run: Storage, tmp_path: Path, opmix: Opmix) -> None:
    file = tmp_path / "study.log"
    file.write_text("of an earlier call\n")
    found = json.loads(opmix("study", run.uri, "--output", file, "--json").out)
    assert found["studies"] == {"decision 000": 7, "decision 001": 7}
    storage = JournalStorage(JournalFileBackend(str(file)))
    study = optuna.load_study(study_name="decision 001", storage=storage)
    rows = [json.loads(line) for line in run.lines("decisions/001/trials.jsonl")]
    usable = [row for row in rows if row["status"] == "ok"]
    assert study.best_value == pytest.approx(min(row["objective"] for row in usable))
    assert study.best_params == pytest.approx(min(usable, key=lambda row: row["objective"])["ratios"])
    assert sum(trial.state == TrialState.COMPLETE for trial in study.trials) == len(usable)
    assert study.user_attrs["kept"] in ("old", "proposal")


def test_optuna_dashboard_opens_it(run: Storage, tmp_path: Path, opmix: Opmix) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    file = tmp_path / "study.log"
    assert opmix("study", run.uri, "--output", file).code == 0
    app = dashboard.wsgi(JournalStorage(JournalFileBackend(str(file))))
    answer: list[str] = []
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/api/studies", "wsgi.input": None, "QUERY_STRING": ""}
    body = b"".join(app(environ, lambda status, headers, *rest: answer.append(status)))
    assert answer == ["200 OK"]
    names = {study["study_name"] for study in json.loads(body)["study_summaries"]}
    assert names == {"decision 000", "decision 001"}


def test_what_has_not_decided(tmp_path: Path, opmix: Opmix) -> None:
    assert "holds no decision" in opmix("study", tmp_path).only_error()
    assert not Path("study.log").exists()
