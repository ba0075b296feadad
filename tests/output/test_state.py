"""state.json: written whole, read with care; and what is left of a segment whose notes were cut off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from opmix_ray.errors import UserError
from opmix_ray.output.state import RunState, identity, load_state, open_output
from opmix_ray.storage import Storage
from opmix_ray.train.checkpoint import TrainState, is_whole, read_state, write_checkpoint
from opmix_ray.train.salvage import NOTES, salvage
from tests.support import TinyRun


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    state = RunState(
        done=3, step=7, stage="s", checkpoint="train/x", mixture={"a": 1 / 3, "b": 2 / 3}, rows=4
    )
    state.save(storage)
    assert load_state(storage) == state


@pytest.mark.parametrize("change", [{"version": 2}, {"extra": 1}])
def test_a_state_of_another_version_is_refused(tmp_path: Path, change: dict[str, int]) -> None:
    storage = Storage(str(tmp_path))
    RunState().save(storage)
    storage.write_json("state.json", storage.read_json("state.json") | change)
    with pytest.raises(UserError, match="is not the state of a run of this version; use --overwrite"):
        load_state(storage)


def test_an_unfinished_run_of_the_same_configuration_goes_on(tiny: TinyRun) -> None:
    storage = Storage(tiny.load().output_uri())
    state = open_output(tiny.load(), storage, resume=False, overwrite=False)
    state.done, state.step = 2, 6
    state.save(storage)
    for resume in (False, True):
        assert open_output(tiny.load(), storage, resume=resume, overwrite=False).step == 6


@pytest.mark.parametrize(
    ("setting", "same"),
    [
        ("train.workers=2", True),
        ("cluster.address=host:1", True),
        ("output=elsewhere", True),
        ("train.batch_size=8", False),
        ("data.domains.code.max_epochs=2", False),
        ("search.round_size=2", False),
    ],
)
def test_what_decides_the_result_is_part_of_a_runs_identity(tiny: TinyRun, setting: str, same: bool) -> None:
    assert (identity(tiny.load()) == identity(tiny.load(setting))) is same


def _checkpoint(directory: Path, step: int) -> Path:
    """A checkpoint of a model with two hidden units."""
    config = AutoConfig.for_model(
        "llama", vocab_size=8, hidden_size=2, intermediate_size=2, num_hidden_layers=1, num_attention_heads=1
    )
    model = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters()).state_dict()
    directory.mkdir(parents=True)
    write_checkpoint(directory, model, None, optimizer, [torch.get_rng_state()], TrainState(step=step))
    return directory


def test_a_checkpoint_is_whole_or_not(tmp_path: Path) -> None:
    directory = _checkpoint(tmp_path / "c", 3)
    assert is_whole(directory)
    with open(directory / "optimizer.pt", "r+b") as file:
        file.truncate(100)
    assert not is_whole(directory)
    assert not is_whole(tmp_path / "nowhere")


def test_the_newest_whole_checkpoint_is_saved_when_the_notes_are_cut_off(tmp_path: Path) -> None:
    storage, base = Storage(str(tmp_path)), tmp_path / "train" / "seg"
    assert salvage(storage, "train/seg") is None
    _checkpoint(base / "checkpoint_1", 3)
    _checkpoint(base / "checkpoint_2", 6)
    (_checkpoint(base / "checkpoint_3", 9) / "rng.pt").write_bytes(b"")
    (base / NOTES).write_bytes(b"")
    for _ in range(2):  # the second time as after a crash in between
        assert salvage(storage, "train/seg") == "train/seg.saved"
        assert read_state(tmp_path / "train" / "seg.saved").step == 6
        assert not base.exists()
        base.mkdir()


def test_whole_notes_are_left_and_what_they_do_not_know_is_removed(tmp_path: Path) -> None:
    base = tmp_path / "train" / "seg"
    _checkpoint(base / "checkpoint_1", 3)
    _checkpoint(base / "checkpoint_2", 6)
    (base / NOTES).write_text(json.dumps({"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_1"}]}))
    assert salvage(Storage(str(tmp_path)), "train/seg") is None
    assert [path.name for path in sorted(base.iterdir())] == ["checkpoint_1", NOTES]
