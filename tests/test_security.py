"""Code that came with somebody's files is not run, names cannot leave the output, text cannot become a page's code."""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from opmix_ray.cli import exit_code
from opmix_ray.commands.console import PlainConsole, print_table
from opmix_ray.commands.follow import Snapshot, page
from opmix_ray.commands.options import show
from opmix_ray.commands.progress import make_progress
from opmix_ray.config import ModelConfig, RunConfig, dump_config, load_config
from opmix_ray.errors import UserError, UserErrors
from opmix_ray.exchange import FORMATS
from opmix_ray.exchange.handover import Handover, Part
from opmix_ray.harmless import hidden, in_uri, without
from opmix_ray.model.load import build_empty, load_model, model_spec, save_model
from opmix_ray.output.ledger import command_line
from opmix_ray.output.state import open_output
from opmix_ray.report import write_report
from opmix_ray.runner.validate import check_uris
from opmix_ray.storage import Storage
from opmix_ray.trackers import _Run
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


SECRETS = {
    "wandb": {"project": "p", "api_key": "SECRET-1", "settings": {"secretKey": "SECRET-2", "max_tokens": 5}},
    "mlflow": {
        "tracking_uri": "mysql+pymysql://me:SECRET-3@host/db?ssl%5Fkey=SECRET-4",
        "auth_token": "SECRET-5",
    },
    "aim": {"repo": "https://SECRET-6@host/repo#access_token=SECRET-7"},
}


def test_secrets_are_used_but_written_nowhere(tiny: TinyRun, tmp_path: Path) -> None:
    tiny.tree["watch"] = SECRETS
    config = tiny.load()
    storage = Storage(str(tmp_path / "out"))
    open_output(config, storage, resume=False, overwrite=False)
    told = _Run(config, storage.uri)  # to trackers
    told.remove()
    assert not Path(told.local_path).exists()
    for text in (storage.read_text("config.yaml"), json.dumps(told.config)):
        assert "SECRET" not in text
        assert {"p", "host"} <= set(re.findall(r"\w+", text))
    assert dump_config(config, secrets=True).count("SECRET") == 7
    tiny.tree = yaml.safe_load(storage.read_text("config.yaml"))
    hidden = {error.key for error in check_uris(tiny.load())}
    assert hidden == {
        "watch.wandb.api_key", "watch.wandb.settings.secretKey", "watch.mlflow.tracking_uri",
        "watch.mlflow.auth_token", "watch.aim.repo",
    }  # fmt: skip


def test_a_run_goes_on_under_another_password(tiny: TinyRun, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "out"))
    for number in (1, 2):
        tiny.tree["watch"] = {"mlflow": {"tracking_uri": f"http://me:{number}@host"}}
        open_output(tiny.load(), storage, resume=number == 2, overwrite=False)
        storage.append("metrics.jsonl", "")


def test_what_a_tracker_says_of_its_secrets_is_not_repeated() -> None:
    said = "cannot log in with SECRET-1 at https://me:other@host/x, nor mysql+pymysql://me:SECRET-3@host/db"
    assert (
        without(said, SECRETS)
        == "cannot log in with *** at https://***@host/x, nor mysql+pymysql://***@host/db"
    )


@pytest.mark.parametrize(
    "value",
    [
        *("mysql://me:pa?SECRET@host/db", "mysql://me:pa#SECRET@host/db", "mysql://me:p@SECRET@host/db"),
        *("https:/me:SECRET@host/x", "https://h/?user_pass=SECRET", "https://h/;jsessionid=SECRET"),
        "mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BUID%3Dme%3BPWD%3DSECRET",
        "https://h/?url=https%3A%2F%2Fme%3ASECRET%40host",
        *("https://hooks.slack.com/services/T0/SECRET", "host=h user=me password=SECRET dbname=x"),
        *({"headers": ["Authorization: Bearer SECRET"]}, {"args": ["--api-key", "SECRET", "--key=SECRET"]}),
        *({"credentials": {"user": "me", "value": "SECRET"}}, {"api_keys": ["SECRET"]}, {"pass": "SECRET"}),
        '{"api_key": "SECRET", "project": "p"}',
    ],
    ids=str,
)
def test_secrets_are_found_in_every_shape(value: Any) -> None:
    assert "SECRET" not in str(hidden({"options": value}))
    if isinstance(value, dict):
        assert without("it said SECRET", value) == "it said ***"


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (
            ["watch.wandbb={api_key: SECRET}"],
            "watch.wandbb = {'api_key': '***'}: unknown key; did you mean",
        ),
        (
            ["watch.wandb={api_key: SECRET"],
            "--set = watch.wandb={api_key: ***: the value is not valid YAML",
        ),
        (["watch.wandb=SECRET"], "watch.wandb = ***: must be a valid dictionary"),
    ],
)
def test_secrets_are_in_no_message_and_in_no_list_of_commands(
    tiny: TinyRun, options: list[str], shown: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_config(tiny.write(), options)
    assert shown in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert (
        "SECRET" not in command_line(["opmix", "run", "a.yaml", "--set", options[0]])
        or "wandb=SECRET" in options[0]
    )


@pytest.mark.parametrize(
    "uri", ["http://host:5000", "file:///data/key=1", "abfs://container@account/a", "s3://b/x?region=eu&monkey=1",
            "https://host/tokenizer?tokens=5&api_key_file=/etc/key", "databricks://profile", "sqlite:///a@b.db"]
)  # fmt: skip
def test_uris_without_secrets_stay_as_they_are(uri: str) -> None:
    assert in_uri(uri) == uri


ACTS = "a\x1b[2J\x1b]0;title\x07\x9b31m\u202eb[bold red]c[/]:smile:"


@pytest.mark.seconds
def test_data_do_not_act_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither as escape sequences nor as rich's markup, wherever they are shown."""
    stream = io.StringIO()
    terminal = PlainConsole(file=stream, force_terminal=True, width=200, color_system=None)
    terminal.print(ACTS)
    print_table(terminal, [{"domain": ACTS, "tokens": 3}])
    shot = Snapshot(ACTS, 1, 2, ACTS, "", 1.0, 2.0, {ACTS: 1.0}, {ACTS: 2.0}, {ACTS: 1.0}, [], 0.0)
    terminal.print(page(shot))
    progress = make_progress(terminal)
    progress.segment_started(ACTS, 0, 4, {ACTS: 1.0})
    progress.close()
    show({"a": ACTS}, "", True)
    show({}, ACTS, False)
    exit_code(lambda: _raise(UserError(ACTS, file=ACTS, value=ACTS)))
    ended = capsys.readouterr()
    for text in (stream.getvalue(), ended.out, ended.err):
        # what rich itself writes: styles, and the cursor of its bars
        rest = re.sub(r"\x1b\[[\d;?]*[mAKhlJ]|\r", "", text)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", rest)
        assert text.count("\x1b[2J") == 0
        assert "[bold red]c[/]:smile:" in text
    assert json.loads(ended.out.splitlines()[0]) == {"a": ACTS}


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("end", ["\n", "\r\n", "\u2028", "\x85", "\x0c"])
def test_a_line_end_in_a_path_does_not_end_a_comment_of_generated_python(end: str) -> None:
    part = Part(name="web", share=1.0, source=None, paths=(f"/data{end}raise SystemExit(7).jsonl",))
    handover = Handover(origin=f"/run{end}raise SystemExit(7)", parts=(part,))
    files = FORMATS["torchtitan"].write(handover, "tokens").files
    python = next(text for name, text in files.items() if name.endswith(".py"))
    tree = ast.parse(python)
    assert "SystemExit" not in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


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


@pytest.mark.seconds
def test_markup_in_a_runs_files_stays_text_in_the_report(tmp_path: Path) -> None:
    storage: Storage = make_run(tmp_path, decisions=1, trials=12)
    for name in ("result.json", "mixture.json", "decisions/000/decision.json", "state.json"):
        storage.write_json(name, _poisoned(storage.read_json(name)))
    write_report(storage)
    page = storage.read_text("report.html")
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    parsed = Page(page)
    assert not parsed.names() & {"img", "iframe", "link", "object", "form"}
    assert sum(tag == "script" for tag, _ in parsed.tags) == 1  # the page's own
    assert "onerror" not in {name for _, attributes in parsed.tags for name in attributes}
