"""A run on an object store is watched like one on a disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from opmix_ray.output.state import load_state, read_config
from opmix_ray.runner.runner import _done
from opmix_ray.storage import Storage
from opmix_ray.trackers import Tracking
from tests.cli.conftest import Opmix
from tests.cli.conftest import opmix as opmix
from tests.object_store import object_store
from tests.trackers.conftest import scalars


def test_watch_study_and_event_files(
    run: Storage, tmp_path: Path, opmix: Opmix, monkeypatch: pytest.MonkeyPatch
) -> None:
    with object_store(tmp_path) as store:
        for name, value in store.environment().items():
            monkeypatch.setenv(name, value)
        remote = Storage(store.uri("run"))
        for name in run.names(recursive=True):
            if (Path(run.uri) / name).is_file():
                remote.write_bytes(name, run.read_bytes(name))
        ended = opmix("watch", remote.uri)
        assert (ended.code, ended.out.startswith("step 60 of 60; finished")) == (0, True)
        assert opmix("study", remote.uri, "--output", tmp_path / "study.log").code == 0
        tracked = Tracking(read_config(remote), remote)
        tracked.replay(**_done(remote, replace(load_state(remote), done=1)))
        tracked.costs(60, {"main": {"tokens": 7.0}}, 0.5)
        live = {name: remote.read_bytes(f"tensorboard/{name}") for name in remote.names("tensorboard")}
        tracked.close()
    place = tmp_path / "fetched"
    place.mkdir()
    for name, content in live.items():
        (place / name).write_bytes(content)
    found = scalars(place)
    assert found["cost/main/tokens"] == {60: 7.0}
    assert max(found["train/loss"]) == 60
