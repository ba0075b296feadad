"""state.json: written whole, read with care; and what is left of a segment whose notes were cut off."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from opmix_ray.errors import UserError
from opmix_ray.output.lock import opened, raise_fence, writing
from opmix_ray.output.state import BEFORE, METRICS, RunState, identity, load_state, open_output, sealed
from opmix_ray.runner.trust import final_rows, trusted
from opmix_ray.storage import Storage, fault
from opmix_ray.train.checkpoint import (
    NOTES,
    TrainState,
    finish_checkpoint,
    read_state,
    recover,
    write_weights,
)
from tests.object_store import object_store
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
    with pytest.raises(UserError, match=r"is not the state of a run of this version; .*--overwrite"):
        load_state(storage)


@pytest.mark.parametrize(("old", "new"), [('"step": 6', '"step": 4'), ("0.75", "0.74"), ("000000", "000001")])
def test_a_digit_of_a_state_that_is_another_is_noticed(
    tiny: TinyRun, tmp_path: Path, old: str, new: str
) -> None:
    config, said = tiny.load(), []
    storage = Storage(config.output_uri())
    state = open_output(config, storage, resume=False, overwrite=False)
    state.done, state.step, state.mixture = 2, 6, {"a": 0.25, "b": 0.75}
    state.ledger = {"main": {"tokens": 4000000.0}}
    storage.write_json(BEFORE, sealed(asdict(replace(state, step=3))))
    state.save(storage)
    assert open_output(config, storage, resume=True, overwrite=False, say=said.append).step == 6
    assert said == []
    text = storage.read_text("state.json")
    assert old in text
    storage.write_text("state.json", text.replace(old, new, 1))
    assert open_output(config, storage, resume=True, overwrite=False, say=said.append).step == 3
    (line,) = said
    assert line.endswith("state.json is damaged: it is not what was written; state.before.json is used")
    kept = storage.read_text(BEFORE)
    storage.delete(BEFORE)
    with pytest.raises(UserError, match=r"state.json: is damaged: it is not what was written; restore"):
        open_output(config, storage, resume=True, overwrite=False)
    storage.write_text(BEFORE, kept)
    storage.delete("state.json")
    assert open_output(config, storage, resume=False, overwrite=False, say=said.append).step == 3
    assert said[-1].endswith("no such file; state.before.json is used")


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
    write_weights(directory, model, None, optimizer)
    finish_checkpoint(directory, [torch.get_rng_state()], TrainState(step=step))
    return directory


def test_a_checkpoint_is_whole_or_not(tmp_path: Path) -> None:
    directory = _checkpoint(tmp_path / "c", 3)
    assert fault(directory) is None
    with open(directory / "model" / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))  # one bit
    assert fault(directory) == "has a damaged model.safetensors in model"
    with open(directory / "optimizer.pt", "r+b") as file:
        file.truncate(100)
    assert fault(directory) in ("has a damaged optimizer.pt", "has a damaged model.safetensors in model")
    (directory / "rng.pt").unlink()
    (directory / "model" / "model.safetensors").unlink()
    assert str(fault(directory)).startswith(("lacks", "has a damaged"))
    (directory / "checksums.json").write_text("{}")
    assert fault(directory) == "has a damaged checksums.json"
    assert fault(tmp_path / "nowhere") == "is gone"


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"step": 3}', "null"])
def test_a_state_that_does_not_say_it_all_is_refused(tmp_path: Path, content: str) -> None:
    directory = _checkpoint(tmp_path / "c", 3)
    (directory / "state.json").write_text(content)
    with pytest.raises(UserError, match=r"state.json: is not a checkpoint"):
        read_state(directory)
    tree = asdict(TrainState(step=3))
    for key in tree:
        (directory / "state.json").write_text(json.dumps(tree | {key: None}))
        with pytest.raises(UserError, match=f"holds something else than it should .{key}"):
            read_state(directory)


def test_the_one_before_is_used_where_the_last_checkpoint_is_damaged_or_gone(tmp_path: Path) -> None:
    storage, base, said = Storage(str(tmp_path)), tmp_path / "train" / "seg", []
    for damage in ("bit", "gone"):
        _checkpoint(base / "checkpoint_1", 3)
        last = _checkpoint(base / "checkpoint_2", 6)
        notes = [{"checkpoint_dir_name": name} for name in ("checkpoint_1", "checkpoint_2")]
        (base / NOTES).write_text(json.dumps({"checkpoint_results": notes}))
        if damage == "bit":
            content = bytearray((last / "optimizer.pt").read_bytes())
            content[len(content) // 2] ^= 4
            (last / "optimizer.pt").write_bytes(content)
        else:
            shutil.rmtree(last)
        assert recover(storage, "train/seg", said.append) == "train/seg.saved"
        assert read_state(tmp_path / "train" / "seg.saved").step == 3
        assert not base.exists()
    assert [line.partition("checkpoint_2 ")[2].split(";")[0] for line in said] == [
        "has a damaged optimizer.pt",
        "is gone",
    ]
    (tmp_path / "train" / "seg.saved" / "state.json").write_text("{}")
    assert recover(storage, "train/seg", said.append) is None


def test_a_state_goes_back_to_the_one_before_its_checkpoint(tmp_path: Path) -> None:
    storage, said = Storage(str(tmp_path)), []
    _checkpoint(tmp_path / "train" / "a" / "checkpoint_1", 3)
    _checkpoint(tmp_path / "train" / "b" / "checkpoint_1", 6)
    now = RunState(done=3, step=6, checkpoint="train/b/checkpoint_1")
    before = RunState(done=2, step=3, checkpoint="train/a/checkpoint_1")
    storage.write_json(BEFORE, asdict(before))
    assert trusted(storage, now, said.append) == now
    shutil.rmtree(tmp_path / "train" / "b")
    assert trusted(storage, now, said.append) == before
    assert len(said) == 1
    storage.write_json(BEFORE, asdict(now))
    with pytest.raises(
        UserError, match=r"is a checkpoint that is gone, and there is none before it.*--overwrite"
    ):
        trusted(storage, now, said.append)
    storage.write_json("result.json", {})
    with pytest.raises(UserError, match=r"the run was finished, and its model and result.json can be used"):
        trusted(storage, now, said.append)


@pytest.mark.seconds
def test_whoever_lost_the_output_may_not_write(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    old = raise_fence(storage)
    with writing(storage, old):
        waiting = threading.Thread(target=raise_fence, args=(storage,))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()  # until the one who writes is done
    waiting.join(120)
    assert not waiting.is_alive()
    with (
        pytest.raises(UserError, match="another opmix process has taken this output over"),
        writing(storage, old),
    ):
        raise AssertionError


@pytest.mark.seconds
def test_of_two_drivers_on_an_object_store_the_later_one_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with object_store(tmp_path) as store:
        for name, value in store.environment().items():
            monkeypatch.setenv(name, value)
        earlier, storage = Storage(store.uri("run")), Storage(store.uri("run"))
        first = raise_fence(earlier)
        earlier.append("metrics.jsonl", "1\n")
        second = raise_fence(storage)
        with writing(storage, second):
            storage.write_text("state.json", "{}")
        with pytest.raises(UserError, match="taken this output over"), writing(storage, first):
            raise AssertionError
        for change in (
            lambda: earlier.append("metrics.jsonl", "2\n"),
            lambda: earlier.child("decisions").write_text("decision.json", "{}"),
            lambda: earlier.upload(tmp_path, "model"),
            lambda: earlier.delete("state.json"),
        ):
            with pytest.raises(UserError, match="taken this output over"):
                change()
        with pytest.raises(UserError, match="taken this output over"):
            opened(store.uri("run"), first)
        late = opened(store.uri("run"), second)
        storage.write_text(f"train/seg/{NOTES}", "{}")
        storage.write_text("train/seg/checkpoint_1/state.json", "{}")
        raise_fence(storage)
        with pytest.raises(UserError, match="taken this output over"):
            recover(late, "train/seg")
        assert storage.exists("train/seg/checkpoint_1/state.json"), "of the one that goes on"
        assert storage.read_text("metrics.jsonl") == "1\n"
        assert storage.exists("state.json")


def test_a_damaged_row_is_left_out_and_named(tmp_path: Path) -> None:
    storage, said = Storage(str(tmp_path)), []
    row = '{"kind": "train", "step": %d, "loss": 1.5, "tokens_per_second": 2.0}'
    storage.write_text(METRICS, f'{row % 1}\n{{"kind": "tr\n[]\n{row % 2}\n')
    assert [row["step"] for row in final_rows(storage, RunState(rows=4), said.append)] == [1, 2]
    assert [line.split(": ")[1].split(" is")[0] for line in said] == ["line 2", "line 3"]


def test_the_newest_whole_checkpoint_is_saved_when_the_notes_are_cut_off(tmp_path: Path) -> None:
    storage, base = Storage(str(tmp_path)), tmp_path / "train" / "seg"
    assert recover(storage, "train/seg") is None
    _checkpoint(base / "checkpoint_1", 3)
    _checkpoint(base / "checkpoint_2", 6)
    (_checkpoint(base / "checkpoint_3", 9) / "rng.pt").write_bytes(b"")
    (base / NOTES).write_bytes(b"")
    for _ in range(2):  # the second time as after a crash in between
        assert recover(storage, "train/seg") == "train/seg.saved"
        assert read_state(tmp_path / "train" / "seg.saved").step == 6
        assert not base.exists()
        base.mkdir()


def test_whole_notes_are_left_and_what_they_do_not_know_is_removed(tmp_path: Path) -> None:
    base = tmp_path / "train" / "seg"
    _checkpoint(base / "checkpoint_1", 3)
    _checkpoint(base / "checkpoint_2", 6)
    (base / NOTES).write_text(json.dumps({"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_1"}]}))
    assert recover(Storage(str(tmp_path)), "train/seg") is None
    assert [path.name for path in sorted(base.iterdir())] == ["checkpoint_1", NOTES]
