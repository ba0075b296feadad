"""Code that came with somebody's files is not run, names cannot leave the output, text cannot become a page's code."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from opmix_ray.config import ModelConfig, RunConfig, load_config
from opmix_ray.errors import UserError, UserErrors
from opmix_ray.model.load import build_empty, load_model, model_spec, save_model
from opmix_ray.report import write_report
from opmix_ray.storage import Storage
from opmix_ray.train.checkpoint import read_tensors
from tests.model.tiny_models import VOCAB, tiny
from tests.report.reading import Page
from tests.report.synthetic import make_run
from tests.support import TinyRun


class _Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_model_code_beside_the_weights_is_off_unless_it_is_asked_for() -> None:
    assert ModelConfig.model_fields["trust_remote_code"].default is False


def test_code_that_a_checkpoint_names_is_not_run(tmp_path: Path) -> None:
    """Neither when it is loaded nor when its architecture is built again for probes and evaluators."""
    mark = tmp_path / "ran"
    save_model(tiny("llama"), tmp_path)
    (tmp_path / "evil.py").write_text(
        f"open({str(mark)!r}, 'w')\nfrom transformers import LlamaConfig as C, LlamaModel as M\n"
    )
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = load_model(ModelConfig(path=str(tmp_path)), vocab_size=VOCAB, eos_token_id=0, seed=0)
    spec = model_spec(model)
    assert spec["remote"] is None
    build_empty(spec)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_pickled_code_in_the_place_of_weights_is_not_run(name: str, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    save_model(tiny("llama"), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"lm_head.weight": _Payload(mark)}, tmp_path / name)
    with pytest.raises(UserError, match=r"model.path = "):
        load_model(ModelConfig(path=str(tmp_path)), vocab_size=VOCAB, eos_token_id=0, seed=0)
    assert not mark.exists()


@pytest.mark.parametrize("write", [torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))])
def test_pickled_code_in_a_checkpoint_is_not_run(write: Any, tmp_path: Path) -> None:
    write({"state": _Payload(tmp_path / "ran")}, tmp_path / "optimizer.pt")
    with pytest.raises(UserError, match=r"optimizer.pt: .*resume from an earlier"):
        read_tensors(tmp_path, "optimizer.pt")
    assert not (tmp_path / "ran").exists()


PLACES = {
    "domain": lambda tree, name: tree["data"]["domains"].update({name: tree["data"]["domains"]["code"]}),
    "evaluation set": lambda tree, name: tree["evaluation"].update(
        sets={name: dict(tree["data"]["domains"]["code"])}
    ),
    "stage": lambda tree, name: tree["stages"][0].update(name=name),
    "run": lambda tree, name: tree.update(name=name),
}


@pytest.mark.parametrize(
    "name", ["../up", "a/b", "..", "/etc/x", ".hidden", "a\nb", "a\n", "a\\b", "", "~x", "c:d", "a\0b"]
)
@pytest.mark.parametrize("place", PLACES)
def test_a_name_that_could_leave_the_output_is_refused(tiny: TinyRun, place: str, name: str) -> None:
    PLACES[place](tiny.tree, name)
    with pytest.raises(UserErrors):
        load_config(tiny.write())


def test_every_name_that_becomes_a_file_has_the_same_pattern() -> None:
    schema = RunConfig.model_json_schema()
    parts = schema["$defs"]
    patterns = [
        schema["properties"]["name"]["pattern"],
        parts["StageConfig"]["properties"]["name"]["pattern"],
        *parts["DataConfig"]["properties"]["domains"]["patternProperties"],
        *parts["EvaluationConfig"]["properties"]["sets"]["patternProperties"],
    ]
    assert len(set(patterns)) == 1


_MARKUP = "</td><img src=x onerror=alert(1)><script>alert(2)</script>"


def _poisoned(value: Any) -> Any:
    """The same tree with markup in the place of every text that is not a key."""
    if isinstance(value, dict):
        return {key: entry if key in _MEANT else _poisoned(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_poisoned(entry) for entry in value]
    return value + _MARKUP if isinstance(value, str) else value


_MEANT = {
    "kept",
    "kind",
    "status",
    "run",
    "law",
    "space",
    "sampler",
    "domains",
    "sets",
    "components",
    "stages",
}


def test_markup_in_a_runs_files_stays_text_in_the_report(tmp_path: Path) -> None:
    storage: Storage = make_run(tmp_path, decisions=1, trials=12)
    for name in ("result.json", "mixture.json", "decisions/000/decision.json", "state.json"):
        storage.write_json(name, _poisoned(storage.read_json(name)))
    write_report(storage)
    page = storage.read_text("report.html")
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    parsed = Page(page)
    assert not parsed.names() & {"script", "img", "iframe", "link", "object", "form"}
    assert "onerror" not in {name for _, attributes in parsed.tags for name in attributes}
