"""What a run begins with: an old mixture, reading positions, an earlier run's weights and moments."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from opmix_ray.config import with_given
from opmix_ray.data.lineage import Content
from opmix_ray.data.prepare import Prepared, prepare
from opmix_ray.data.sampler import SamplerState
from opmix_ray.errors import UserError, UserErrors
from opmix_ray.output.state import RunState
from opmix_ray.runner.base import BASE, PriorTraining, adopt, beginning, resolved, same_content, start_stage
from opmix_ray.storage import Storage, seal
from tests.support import TinyRun, read_json

STAGE = {"name": "next", "steps": 40, "start": "carry"}


@pytest.fixture
def prepared(tiny: TinyRun) -> Prepared:
    return prepare(tiny.load())


def before(prepared: Prepared, **consumed: int) -> PriorTraining:
    read = {name: Content.of(prepared.domains[name]) for name in consumed}
    shares = {name: count / sum(consumed.values()) for name, count in consumed.items()}
    return PriorTraining(shares, SamplerState(consumed=consumed), read)


def test_without_a_past_there_is_nothing_old(tiny: TinyRun, prepared: Prepared) -> None:
    start = start_stage(tiny.load(), 0, beginning(tiny.load()), prepared)
    assert (start.old, start.used, start.notes) == (None, {}, [])


def test_a_given_old_mixture_is_restricted_to_the_stage(tiny: TinyRun, prepared: Prepared) -> None:
    tiny.tree["stages"] = [STAGE | {"domains": ["code", "mathematics"]}]
    tiny.tree["base"] = {"mixture": {"code": 0.2, "german": 0.8}}
    config = tiny.load()
    start = start_stage(config, 0, beginning(config), prepared)
    assert start.old is not None
    assert start.old.shares == start.mixture.shares == {"code": 1.0, "mathematics": 0.0}


def test_caps_count_what_earlier_runs_read(tiny: TinyRun, prepared: Prepared) -> None:
    size = prepared.domains["code"].train_sequences
    tiny.tree["stages"] = [STAGE]
    tiny.tree["data"]["domains"]["code"]["max_epochs"] = 1
    fresh = start_stage(tiny.load(), 0, before(prepared, code=10, german=10), prepared)
    used_up = start_stage(tiny.load(), 0, before(prepared, code=size - 16, german=size - 16), prepared)
    assert fresh.mixture["code"] == pytest.approx(0.5)
    assert used_up.mixture["code"] == pytest.approx(0.1), "16 of 160 sequences are left"
    assert used_up.notes == ["code: share changed by -0.4000 to keep its max_epochs",
                             "german: share changed by +0.4000 to keep its max_epochs"]  # fmt: skip


def test_what_a_stage_leaves_is_old_for_the_next(tiny: TinyRun, prepared: Prepared) -> None:
    tiny.tree["stages"] = [
        {"name": "one", "steps": 5, "domains": ["code", "german"], "start": {"code": 0.75, "german": 0.25}},
        STAGE,
    ]
    config = tiny.load()
    first = start_stage(config, 0, PriorTraining(), prepared)
    second = start_stage(config, 1, first.after(20), prepared)
    assert second.old is not None
    assert second.old.shares == {"code": 0.75, "german": 0.25, "mathematics": 0.0}
    assert second.used == {"code": 15 * 32.0, "german": 5 * 32.0}


@pytest.fixture
def base(tmp_path: Path, prepared: Prepared) -> Path:
    """What a finished run leaves, its weights a few bytes."""
    directory = tmp_path / "base"
    for part in ("model", "train/last/checkpoint/model"):
        (directory / part).mkdir(parents=True)
        (directory / part / "config.json").write_text("{}")
        (directory / part / "weights").write_text(part)
    for name in ("optimizer.pt", "rng.pt"):
        (directory / "train/last/checkpoint" / name).write_text(name)
    seal(directory / "train/last/checkpoint")
    past = before(prepared, code=7, german=9)
    state = RunState(mixture=past.mixture, checkpoint="train/last/checkpoint", finished=True)
    past.put(state)
    state.sampler["step"] = 4
    (directory / "state.json").write_text(json.dumps(asdict(state)))
    return directory


@pytest.mark.parametrize("moments", [True, False])
def test_a_base_becomes_the_first_checkpoint(tiny: TinyRun, base: Path, moments: bool) -> None:
    tiny.tree["base"] = {"optimizer": moments}
    config, storage, state = (
        with_given(tiny.load(), base=str(base)),
        Storage(str(tiny.directory / "out")),
        RunState(),
    )
    adopt(config, storage, state)
    found = tiny.directory / "out" / BASE
    assert state.checkpoint == BASE
    assert (found / "model" / "weights").read_text() == (
        "train/last/checkpoint/model" if moments else "model"
    )
    assert not (found / "model").is_symlink()
    assert (found / "optimizer.pt").exists() == (found / "rng.pt").exists() == moments
    assert state.sampler["consumed"] == {"code": 7, "german": 9}
    assert read_json(found / "state.json")["sampler"]["step"] == 0, "steps are counted anew"
    with resolved(config) as run:
        assert run.written == config, "what is written down names no place of today"
        assert run.config.model.path == str(base / "model")
        assert run.config.model.autocast == config.model.autocast


def test_a_model_that_is_named_is_taken_instead_of_the_bases(tiny: TinyRun, base: Path) -> None:
    tiny.tree["base"] = {"run": str(base)}
    config, state = tiny.load(), RunState()
    adopt(config, Storage(str(tiny.directory / "out")), state)
    assert (state.checkpoint, state.sampler["consumed"]) == (None, {"code": 7, "german": 9})
    with resolved(config) as run:
        assert run.config == config


def test_data_do_not_change_within_a_run(prepared: Prepared) -> None:
    state = RunState()
    past = before(prepared, code=7, german=9)
    past.put(state)
    state.mixture = past.mixture
    same_content(state, prepared)
    state.read["code"]["digest"] = "other"
    with pytest.raises(UserErrors, match=r"data\.domains\.code: holds other text than when this run began"):
        same_content(state, prepared)


def test_a_directory_that_is_no_run(tiny: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not the output of a run"):
        beginning(with_given(tiny.load(), base=str(tmp_path)))
