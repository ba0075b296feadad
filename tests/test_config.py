"""Configurations from YAML: defaults, overrides, paths, and the way back to YAML."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from opmix_ray.config import RunConfig, dump_config, load_config, load_partly, read_yaml
from opmix_ray.config.section import GONE, Section, inner_section, without_gone
from opmix_ray.errors import UserError, UserErrors
from opmix_ray.output.state import identity, read_config
from opmix_ray.paths import shipped
from opmix_ray.storage import Storage
from opmix_ray.yaml_file import parse_yaml
from tests.support import TinyRun

EXAMPLES = sorted(
    file for file in shipped("examples").rglob("*.yaml") if "stages:" in file.read_text()
)  # the others are not runs


@pytest.mark.parametrize("file", EXAMPLES, ids=[file.name for file in EXAMPLES])
@pytest.mark.seconds
def test_a_dump_reads_back_as_the_same_run(file: Path, tmp_path: Path) -> None:
    config = load_config(file)
    copy = tmp_path / "config.yaml"
    copy.write_text(dump_config(config))
    assert load_config(copy) == config
    assert RunConfig.model_validate(yaml.safe_load(dump_config(config))) == config
    assert identity(load_config(copy)) == identity(config)


def test_a_configuration_is_never_changed_and_another_one_differs_where_it_says_so(tiny: TinyRun) -> None:
    config = tiny.load()
    with pytest.raises(ValidationError, match="frozen"):
        config.train.batch_size = 3
    other = config.but(
        seed=9, train={"optimizer": {"learning_rate": 0.5}}, evaluation={"weights": {"code": 1.0}}
    )
    assert (other.seed, other.train.optimizer.learning_rate, other.objective()) == (9, 0.5, {"code": 1.0})
    assert other.train.batch_size == config.train.batch_size
    assert other.train.optimizer.betas == config.train.optimizer.betas
    assert config == tiny.load()
    assert config.but() == config


def test_a_dump_says_every_default(tiny: TinyRun) -> None:
    tree = yaml.safe_load(dump_config(tiny.load()))
    assert tree["train"]["optimizer"] == {
        "learning_rate": 0.003, "betas": [0.9, 0.95], "weight_decay": 0.1, "clip_norm": 1.0,
    }  # fmt: skip
    assert set(tree) == set(RunConfig.model_fields)


def test_overrides_reach_into_mappings_and_lists_and_are_yaml(tiny: TinyRun) -> None:
    config = tiny.load(
        "train.batch_size=8",
        "train.optimizer.learning_rate=1e-4",
        "stages.0.steps=77",
        "stages.0.start={code: 1, german: 3}",
        "evaluation.weights.code=2",
        "train.optimizer.clip_norm=null",
        "name=a=b".replace("=b", "-b"),
    )
    assert (config.train.batch_size, config.train.optimizer.learning_rate) == (8, 1e-4)
    assert config.stages[0].steps == 77
    assert config.stages[0].start == {"code": 1, "german": 3}
    assert config.evaluation.weights == {"code": 2}
    assert config.train.optimizer.clip_norm is None
    assert config.name == "a-b"


def test_the_last_override_of_a_key_counts(tiny: TinyRun) -> None:
    assert tiny.load("seed=1", "seed=2").seed == 2


def test_paths_in_overrides_are_what_a_shell_completes(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    (here / "runs" / "base").mkdir(parents=True)
    for name in ("a.jsonl", "b.jsonl", "space.yaml"):
        (here / name).write_text("kind: simplex\n")
    monkeypatch.chdir(here)
    config = tiny.load(
        "model.config=null",
        "model.path=runs/base",
        "tokenizer.path=org/name",  # leads nowhere: of a hub
        'data.domains.code.path="*.jsonl"',
        "data.domains.german.path=[a.jsonl, gone.jsonl]",
        "evaluation.sets={held: {path: b.jsonl}}",
        "search.space=space.yaml",
    )
    assert config.model.path == str(here / "runs" / "base")
    assert config.tokenizer.path == "org/name"
    assert config.data.domains["code"].path == str(here / "*.jsonl")
    assert config.data.domains["german"].path == [str(here / "a.jsonl"), str(tiny.directory / "gone.jsonl")]
    assert config.evaluation.sets["held"].path == str(here / "b.jsonl")
    assert config.search.space == str(here / "space.yaml")
    tiny.tree["model"] = {"path": "runs/base"}  # not beside the file: where transformers would find it
    assert tiny.load().model.path == str(here / "runs" / "base")
    (tiny.directory / "old-run").mkdir()
    changed = tiny.load("model.config=null", "base.run=old-run")  # not here: beside the file, as in it
    assert changed.base.run == str(tiny.directory / "old-run")


def test_paths_are_relative_to_the_file_and_uris_are_left(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tiny.directory / "tok").mkdir()
    (tiny.directory / "space.yaml").write_text("kind: simplex\n")
    domains = tiny.tree["data"]["domains"]
    domains["code"]["path"] = "sub/code.jsonl"
    domains["german"]["path"] = ["a.jsonl", "/b.jsonl", "s3://bucket/c.jsonl"]
    domains["mathematics"]["path"] = "~/m.jsonl"
    tiny.tree["data"]["cache"] = "gs://bucket/cache"
    tiny.tree["tokenizer"]["path"] = "tok"
    tiny.tree["model"] = {"path": "owner/name"}
    tiny.tree["search"]["space"] = "space.yaml"
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", "/home/somebody")
    config = tiny.load()
    here = tiny.directory
    assert config.data.domains["code"].path == str(here / "sub/code.jsonl")
    assert config.data.domains["german"].path == [str(here / "a.jsonl"), "/b.jsonl", "s3://bucket/c.jsonl"]
    assert config.data.domains["mathematics"].path == "/home/somebody/m.jsonl"
    assert config.data.cache == "gs://bucket/cache"
    assert config.tokenizer.path == str(here / "tok")
    assert config.model.path == "owner/name", "what is not a directory here is a hub id"
    assert config.search.space == str(here / "space.yaml")


@pytest.mark.parametrize(("text", "value"), [("3e-4", 3e-4), ("1E5", 1e5), ("-2e+3", -2000.0), (".5e1", 5.0)])
def test_numbers_are_read_as_they_are_meant(text: str, value: float) -> None:
    assert parse_yaml(text) == value
    assert isinstance(parse_yaml(text), float)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", "010"),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("1_000", 1000),
        ("0x1f", 31),
        ("-3", -3),
        ("0", 0),
    ],
)
def test_no_number_is_read_as_another(text: str, value: object) -> None:
    """YAML 1.1 has octal numbers and numbers to the base of 60."""
    assert parse_yaml(text) == value


def test_merged_keys_are_read_and_may_be_given_again() -> None:
    text = "a: &a {path: x, share: 1}\nb: {<<: *a, path: y}\n"
    assert parse_yaml(text)["b"] == {"path": "y", "share": 1}
    with pytest.raises(yaml.YAMLError, match="the key 'c' is given twice"):
        parse_yaml(text + "d: {<<: *a, c: 1, c: 2}\n")


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]",
        "a: &a\n  b: *a",
        "a0: &a0 [1, 1]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
    ],
)
def test_aliases_without_end_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(
        UserError, match="an alias stands inside what it names, or aliases make it far too large"
    ):
        read_yaml(file)


@pytest.mark.parametrize("text", ["a: 1\na: 2\n", "x: {b: 1, b: 1}\n", "- {c: 1, 'c': 2}\n"])
def test_a_key_given_twice_is_refused_at_any_depth(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(
        UserError, match=r"x\.yaml: is not valid YAML in line \d: the key '[abc]' is given twice"
    ):
        read_yaml(file)


def test_every_error_is_given_once_with_the_nearest_key(tiny: TinyRun) -> None:
    tiny.tree["trian"] = {}
    tiny.tree["stages"][0]["decide"] = [0.5]
    tiny.tree["probe"]["steps"] = "many"
    tiny.tree["zzz"] = 1
    with pytest.raises(UserErrors) as found:
        load_config(tiny.write())
    by_key = {error.key: error.remedy or "" for error in found.value.errors}
    assert len(found.value.errors) == 4
    assert by_key["trian"] == "did you mean `train`?"
    assert by_key["stages.0.decide"] == "did you mean `decide_at`?"
    assert by_key["zzz"].startswith("known keys: name, seed")
    assert by_key["probe.steps"].startswith("the default is 25")


def test_a_misspelt_key_is_read_as_meant_to_look_further(tiny: TinyRun) -> None:
    tiny.tree["data"]["domains"]["code"] = {"paht": "gone.jsonl"}
    tiny.tree["train"]["batch_size"] = -1
    config, errors = load_partly(tiny.write())
    assert config is not None
    assert config.data.domains["code"].path == str(tiny.directory / "gone.jsonl")
    assert config.train.batch_size == 16
    assert sorted(error.key or "" for error in errors) == ["data.domains.code.paht", "train.batch_size"]


def test_nothing_can_be_understood_without_what_has_no_default(tiny: TinyRun) -> None:
    del tiny.tree["stages"]
    config, errors = load_partly(tiny.write())
    assert config is None
    assert [(error.key, error.problem) for error in errors] == [("stages", "is missing")]


def leaf_keys(section: type[Section], prefix: str = "") -> list[str]:
    """Every key that a file may give a value, by its path; names of domains and positions of stages left out."""
    found: list[str] = []
    for name, field in section.model_fields.items():
        inner = inner_section(field.annotation)
        found += leaf_keys(inner, f"{prefix}{name}.") if inner else [f"{prefix}{name}"]
    return found


def test_there_are_few_keys() -> None:
    """A key needs a measured gain or a user's reason (docs/decisions.md)."""
    keys = leaf_keys(RunConfig)
    assert len(keys) <= 150
    assert len([key for key in keys if not key.startswith("strategies.")]) <= 120


def test_a_key_that_is_gone_says_what_to_do_instead(tiny: TinyRun) -> None:
    tiny.tree["probe"]["settle"] = 0.9
    tiny.tree["search"]["chunks"] = 4
    tiny.tree["evaluation"]["sets"] = {"more": {"path": "x.jsonl", "max_share": 0.5}}
    config, errors = load_partly(tiny.write())
    assert config is not None
    assert {error.key: (error.problem, error.remedy) for error in errors} == {
        key: ("there is no such key any more", GONE[pattern])
        for key, pattern in {
            "probe.settle": "probe.settle",
            "search.chunks": "search.chunks",
            "evaluation.sets.more.max_share": "evaluation.sets.*.max_share",
        }.items()
    }


def test_no_key_is_gone_and_there(tiny: TinyRun) -> None:
    there = {key.replace("evaluation.sets.", "evaluation.sets.*.") for key in leaf_keys(RunConfig)}
    there = {key.replace("stages.", "stages.*.") for key in there}
    assert not there & set(GONE)


def test_an_earlier_release_s_own_record_of_a_run_is_still_read(tiny: TinyRun) -> None:
    """It wrote every key there was, so a run could not be continued or reported any more."""
    tiny.tree["evaluation"]["sets"] = {"more": {"path": "/x.jsonl"}}
    kept = tiny.load().model_dump(mode="json")
    tree = copy.deepcopy(kept)
    tree["evaluation"]["sets"]["more"] |= {"max_share": 1.0, "group": None}
    tree["stages"][0]["overlap_steps"] = None
    for key in GONE:
        *sections, name = key.split(".")
        if "*" not in sections and sections != ["evaluation", "harness"]:
            node = tree
            for section in sections:
                node = node[section]
            node[name] = None
    assert without_gone(tree) == kept
    place = Storage(str(tiny.directory / "earlier"))
    place.write_text("config.yaml", yaml.safe_dump(tree))
    assert read_config(place) == RunConfig.model_validate(kept)
