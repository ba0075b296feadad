"""What is in the exported files, and what is refused; the targets' own parsers are asked in `test_targets`."""

from __future__ import annotations

import csv
import io
import json
import runpy
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import datasets
import pytest
import yaml
from pydantic import BaseModel, ConfigDict
from transformers import AutoTokenizer

from opmix_ray.cli import app, exit_code
from opmix_ray.commands.export import export
from opmix_ray.commands.runs import FORMATS as NAMES
from opmix_ray.config import RunConfig
from opmix_ray.errors import UserError
from opmix_ray.exchange import FORMATS, read_weights
from opmix_ray.storage import Storage
from tests.exchange.conftest import MIXTURE, Output, write_output
from tests.object_store import object_store
from tests.support import DEMO, TinyRun


def written(output: Output, format: str, place: Path, **settings: Any) -> Any:
    """The first YAML file of an export."""
    files = export(str(output.directory), format, str(place), **settings).files
    return yaml.safe_load(Path(next(file for file in files if file.endswith(".yaml"))).read_text())


def test_rows_of_datasets_hold_the_shares_of_tokens(text_run: Output, tmp_path: Path) -> None:
    file = export(str(text_run.directory), "datasets", str(tmp_path)).files[0]
    module = runpy.run_path(file)
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "tokenizer")
    domain_of = {
        json.loads(line)["text"]: name
        for name, paths in text_run.paths().items()
        for line in Path(paths[0]).read_text().splitlines()
    }
    tokens: Counter[str] = Counter()
    for row in islice(module["mixture"](streaming=False), 4000):
        tokens[domain_of[row["text"]]] += len(tokenizer(row["text"])["input_ids"]) + 1
    delivered = {name: count / tokens.total() for name, count in tokens.items()}
    assert delivered == pytest.approx(MIXTURE, abs=0.06)  # by rows it would be .02, .11, .87


def test_prompts_and_answers_are_named_for_their_trainers(chat_run: Output, tmp_path: Path) -> None:
    settings = written(chat_run, "llamafactory", tmp_path / "l")
    info = json.loads((tmp_path / "l" / "dataset_info.json").read_text())
    assert settings["stage"] == "sft"
    assert info["short"]["columns"] == {"prompt": "ask", "response": "say"}
    sets = written(chat_run, "axolotl", tmp_path / "a", tokens=20_000)["datasets"]
    assert sets[0]["type"]["field_instruction"] == "ask"
    assert sets[0]["type"]["field_output"] == "say"
    module = runpy.run_path(export(str(chat_run.directory), "datasets", str(tmp_path / "d")).files[0])
    assert set(next(iter(module["mixture"]()))) == {"prompt", "completion"}


class OlmixSection(BaseModel):
    """A section of olmix's `FitConfig` (olmix/fit/config.py); keys that it does not know are refused here."""

    model_config = ConfigDict(extra="forbid")


class OlmixSwarm(OlmixSection):
    ratios: str
    metrics: str


class OlmixPriors(OlmixSection):
    token_counts: dict[str, int]


class OlmixEval(OlmixSection):
    type: Literal["offline"]
    tasks: dict[str, list[str]]


class OlmixRegression(OlmixSection):
    type: Literal["log_linear", "lightgbm", "search", "gp", "autoscale", "bimix"]


class OlmixProposer(OlmixSection):
    type: Literal["exact", "simulation", "search"]
    kl_reg: float | None


class OlmixConstraints(OlmixSection):
    enabled: bool
    target_tokens: int | None
    repetition_factor: float


class OlmixFit(OlmixSection):
    swarm: OlmixSwarm
    priors: OlmixPriors
    eval: OlmixEval
    regression: OlmixRegression
    proposer: OlmixProposer
    constraints: OlmixConstraints | None = None


def test_olmix_gets_the_trials_and_the_token_counts(text_run: Output, tmp_path: Path) -> None:
    tree = written(text_run, "olmix", tmp_path)
    OlmixFit.model_validate(tree)
    ratios = list(csv.DictReader(io.StringIO(Path(tree["swarm"]["ratios"]).read_text())))
    metrics = list(csv.DictReader(io.StringIO(Path(tree["swarm"]["metrics"]).read_text())))
    assert [row["run"] for row in ratios] == [row["run"] for row in metrics]
    assert set(tree["priors"]["token_counts"]) == set(ratios[0]) - {"run"}
    assert set(tree["eval"]["tasks"]["held_out"]) == set(metrics[0]) - {"run"}
    counts = {name: domain.train_tokens for name, domain in text_run.prepared.domains.items()}
    assert tree["priors"]["token_counts"] == counts


def test_directories_and_saved_data_sets_are_loaded_by_their_files(text_run: Output, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.jsonl").write_bytes(Path(text_run.paths()["code"][0]).read_bytes())
    rows = [json.loads(line) for line in Path(text_run.paths()["german"][0]).read_text().splitlines()]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "german"))
    tree = text_run.config.model_dump(mode="json")
    for name in ("code", "german"):
        tree["data"]["domains"][name]["path"] = str(tmp_path / name)
    output = write_output(tmp_path / "out", RunConfig.model_validate(tree))
    module = runpy.run_path(export(str(output.directory), "datasets").files[0])
    assert len(module["load"]("code", streaming=False)) == 40
    assert len(module["load"]("german", streaming=False)) == len(rows)


def test_olmo_core_may_repeat_as_often_as_the_plan_needs(olmo_run: Output, tmp_path: Path) -> None:
    tokens = 400_000
    for source in written(olmo_run, "olmo-core", tmp_path, tokens=tokens)["sources"]:
        there = olmo_run.prepared.domains[source["source_name"]].train_tokens
        assert source["max_repetition_ratio"] * there >= source["target_ratio"] * tokens
        assert Path(source["paths"][0]).name == "*.npy"


def test_domains_without_a_share_are_left_out(text_run: Output, tmp_path: Path) -> None:
    output = write_output(tmp_path / "out", text_run.config, {"code": 0.0, "german": 0.5, "mathematics": 0.5})
    for format in FORMATS:
        text = "".join(Path(file).read_text() for file in export(str(output.directory), format).files)
        assert "german" in text
        assert "code.jsonl" not in text, format


def test_places_said_by_the_user_are_taken_as_they_are(text_run: Output, tmp_path: Path) -> None:
    paths = ["code=/mnt/code-a", "code=/mnt/code-b.bin", "german=s3://b/german", "mathematics=/mnt/m"]
    found = export(str(text_run.directory), "megatron", str(tmp_path), paths=paths)
    assert Path(found.files[0]).read_text() == (
        "0.075 /mnt/code-a\n0.075 /mnt/code-b\n0.6 s3://b/german\n0.25 /mnt/m\n"
    )
    assert found.notes == ["train with --data-args-path megatron_blend.txt"]
    streams = written(text_run, "streaming", tmp_path / "s", paths=paths)["streams"]
    assert streams["german"]["remote"] == "s3://b/german"
    assert streams["code.1"]["local"] == "/mnt/code-b.bin"


def test_a_mixture_alone_needs_to_know_where_the_data_are(
    text_run: Output, tiny: TinyRun, tmp_path: Path
) -> None:
    file = tmp_path / "mixture.json"
    file.write_text(json.dumps({"mixture": MIXTURE}))
    with pytest.raises(UserError, match="code: nothing says where its data are"):
        export(str(file), "olmo-core")
    assert not (tmp_path / "export").exists()
    found = export(str(file), "megatron-energon", config=tiny.write())  # lengths are measured now
    weights = {name: share / text_run.lengths()[name] for name, share in MIXTURE.items()}
    expected = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    assert found.weights == pytest.approx(expected)
    assert export(str(file), "olmix").weights == pytest.approx(MIXTURE)


def test_an_export_does_not_stop_a_run_from_going_on(text_run: Output) -> None:
    from opmix_ray.output.state import open_output

    export(str(text_run.directory), "megatron")
    open_output(text_run.config, Storage(str(text_run.directory)), resume=True, overwrite=False)


def test_object_stores(text_run: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with object_store(tmp_path) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        storage = Storage(server.uri("run"))
        for name in ("mixture.json", "config.yaml", "state.json"):
            storage.write_bytes(name, (text_run.directory / name).read_bytes())
        found = export(server.uri("run"), "nemo")
        assert found.files == [storage.path("export/nemo/nemo_blend.yaml")]
        assert read_weights(found.files[0]).entries[1].weight == pytest.approx(MIXTURE["german"])


def command(*arguments: str) -> int:
    """The exit code of `opmix export ...` in this process."""
    return exit_code(lambda: app(["export", *arguments], standalone_mode=False, prog_name="opmix"))


def text_and_chat(text_run: Output, chat_run: Output, directory: Path) -> Output:
    tree = text_run.config.model_dump(mode="json")
    tree["data"]["domains"] = {
        "code": tree["data"]["domains"]["code"],
        "short": chat_run.config.model_dump(mode="json")["data"]["domains"]["short"],
    }
    config = type(text_run.config).model_validate(tree)
    return write_output(directory, config, {"code": 0.5, "short": 0.5}, sweep=False)


@pytest.mark.parametrize(
    ("format", "words"),
    [
        ("llamafactory", "in different stages"),
        ("torchtitan", "data.domains.short: torchtitan's interleaved loader cannot read prompts and answers"),
        ("datasets", "rows of different kinds (prompt, text) cannot be interleaved"),
    ],
)
def test_mixtures_that_a_trainer_cannot_train_are_refused(
    format: str, words: str, text_run: Output, chat_run: Output, tmp_path: Path
) -> None:
    output = text_and_chat(text_run, chat_run, tmp_path / "out")
    with pytest.raises(UserError) as caught:
        export(str(output.directory), format)
    assert words in str(caught.value)
    assert not (tmp_path / "out" / "export").exists()


@pytest.mark.parametrize("format", ["torchtitan", "llamafactory", "axolotl", "datasets"])
def test_token_ids_are_refused_where_text_is_read(format: str, megatron_run: Output, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        export(str(megatron_run.directory), format, str(tmp_path / "to"))
    assert "--path" in str(caught.value)
    paths = [f"{name}=/text/{name}.jsonl" for name in MIXTURE]
    assert export(str(megatron_run.directory), format, str(tmp_path / "to"), paths=paths).files


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "megatrom"], "--format = megatrom: no such format; did you mean `megatron`?"),
        (
            ["--format", "megatron", "--unit", "documents"],
            "--unit = documents: the weights of megatron always",
        ),
        (["--format", "megatron", "--unit", "words"], "--unit = words: must be tokens or documents"),
        (["--format", "megatron", "--path", "code"], "--path = code: must look like NAME=PATH"),
        (
            ["--format", "megatron", "--path", "coda=x"],
            "--path = coda: no such domain in the mixture; did you mean",
        ),
        (["--format", "llamafactory", "--output", "x.yaml"], "--output = x.yaml: llamafactory is 2 files"),
    ],
)
def test_wrong_words_on_the_command_line(
    arguments: list[str], words: str, text_run: Output, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(str(text_run.directory), *arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.strip().splitlines()) == 1


def test_the_help_names_every_format() -> None:
    assert NAMES.replace(" or ", ", ").split(", ") == list(FORMATS)


def test_the_command_prints_files_and_what_is_left_to_do(
    text_run: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(str(text_run.directory), "--format", "nemo", "--output", str(tmp_path / "blend.yaml")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(tmp_path / "blend.yaml")
    assert lines[1].startswith("- code: make ")
    assert command(str(text_run.directory), "--format", "streaming", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["unit"] == "documents"
    assert sum(found["weights"].values()) == pytest.approx(1)
