"""Checks that need the data: sizes, caps, spaces; each domain on its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from opmix_ray.errors import UserErrors
from opmix_ray.runner import forecast
from opmix_ray.runner.check_plan import oddities
from opmix_ray.runner.validate import check_all, check_before, check_prepared, copies, examine, validate
from tests.support import DOMAINS, TinyRun


def test_a_run_without_fault_has_no_errors_and_its_data_prepared(tiny: TinyRun) -> None:
    config = tiny.load()
    assert check_before(config) == []
    prepared = validate(config)
    assert check_prepared(config, prepared) == []
    assert list(prepared.domains) == list(DOMAINS)


def test_errors_name_the_configurations_file_where_they_name_no_other(tiny: TinyRun) -> None:
    tiny.tree["tokenizer"]["path"] = "/nowhere"
    tiny.tree["data"]["domains"]["code"]["text_column"] = "words"
    errors = {error.key: error.file for error in check_all(tiny.load(), tiny.file)}
    assert errors["tokenizer.path"] == str(tiny.file)
    assert str(errors["data.domains.code.text_column"]).endswith("code.jsonl")


def test_a_copy_under_another_name_is_told(tiny: TinyRun) -> None:
    first = next(iter(tiny.tree["data"]["domains"].values()))
    copied = shutil.copy(first["path"], tiny.directory / "copy.jsonl")
    first["path"] = [first["path"], str(copied)]
    (line,) = copies(tiny.load())
    assert f"{copied} holds the same bytes as" in line


def test_every_domain_that_is_too_small_is_named(tiny: TinyRun) -> None:
    tiny.tree["data"]["cache"] = str(tiny.directory / "cache")
    for name in ("german", "mathematics"):
        (tiny.directory / f"{name}.jsonl").write_text('{"text": "short"}\n')
        tiny.tree["data"]["domains"][name]["path"] = f"{name}.jsonl"
    errors = check_all(tiny.load(), tiny.file)
    assert [error.key for error in errors] == ["data.domains.german", "data.domains.mathematics"]


def test_caps_are_counted_over_the_stages(tiny: TinyRun) -> None:
    """The first stage uses up what the second would need."""
    tiny.tree["stages"] = [
        {
            "name": "one",
            "steps": 40,
            "domains": ["mathematics", "code"],
            "start": {"mathematics": 1, "code": 0},
        },
        {"name": "two", "steps": 40, "domains": ["mathematics"]},
    ]
    tiny.tree["data"]["domains"]["mathematics"]["max_epochs"] = 1
    prepared = validate(tiny.load("data.domains.mathematics.max_epochs=100"))
    per_stage = 40 * 4 * 32 / prepared.domains["mathematics"].train_tokens
    assert (
        check_prepared(tiny.load(f"data.domains.mathematics.max_epochs={2 * per_stage + 0.01}"), prepared)
        == []
    )
    errors = check_prepared(tiny.load(f"data.domains.mathematics.max_epochs={1.5 * per_stage}"), prepared)
    assert [error.key for error in errors] == ["stages.1: max_epochs"]
    assert "mathematics has" in str(errors[0])


def test_a_stage_with_fewer_sequences_than_a_batch(tiny: TinyRun) -> None:
    prepared = validate(tiny.load())
    errors = check_prepared(tiny.load("train.batch_size=900000"), prepared)
    assert len(errors) == 1
    assert "fewer than one batch of 900000" in str(errors[0])


def test_old_new_needs_a_new_domain_in_every_stage_that_decides(tiny: TinyRun) -> None:
    tiny.tree["stages"] = [
        {"name": "one", "steps": 4, "domains": ["code", "german"], "start": "uniform"},
        {"name": "two", "steps": 4, "start": "carry", "decide_at": [0.5], "search_space": "old_new"},
    ]
    assert check_before(tiny.load()) == []
    tiny.tree["stages"][1]["start"] = "uniform"
    assert check_before(tiny.load()) == [], "new is what the last stage did not have"
    tiny.tree["stages"][1]["domains"] = ["code", "german"]
    assert [error.key for error in check_before(tiny.load())] == ["stages.1.search_space"]
    with pytest.raises(UserErrors, match="old_new"):
        validate(tiny.load())


def test_nothing_is_tokenised_where_the_cluster_or_the_configuration_is_wrong(tiny: TinyRun) -> None:
    tiny.tree["data"]["cache"] = str(tiny.directory / "cache")
    (error,) = check_all(tiny.load("train.cpus_per_worker=5000"))
    assert error.key == "train.cpus_per_worker"
    assert not (tiny.directory / "cache").exists()


def test_an_output_that_cannot_be_written(tiny: TinyRun) -> None:
    (tiny.directory / "file").write_text("")
    for output, problem in (("file", "is a file"), ("file/out", "cannot be written: Not a directory")):
        (error,) = check_before(tiny.load(output=output))
        assert (error.key, error.problem.partition(" in ")[0]) == ("output", problem)
    assert check_before(tiny.load(output="new/and/newer")) == []
    assert sorted(path.name for path in tiny.directory.iterdir()) == ["file", "run.yaml"]


def test_one_file_under_two_names_and_two_columns_of_one_file(tiny: TinyRun) -> None:
    code = Path(tiny.tree["data"]["domains"]["code"]["path"])
    (tiny.directory / "link.jsonl").symlink_to(code)
    tiny.tree["data"]["domains"]["link"] = {"path": str(tiny.directory / "link.jsonl")}
    (error,) = check_before(tiny.load())
    assert error.key == "data.domains.link.path"
    row = json.loads(code.read_text().splitlines()[0])
    (tiny.directory / "link.jsonl").unlink()
    (tiny.directory / "both.jsonl").write_text(json.dumps({"a": row["text"], "b": row["text"][::-1]}))
    for column in "ab":
        tiny.tree["data"]["domains"][f"link{column}"] = {"path": "both.jsonl", "text_column": column}
    del tiny.tree["data"]["domains"]["link"]
    assert check_before(tiny.load()) == []


def test_a_share_of_zero_that_is_written_down_is_told_but_not_refused(tiny: TinyRun) -> None:
    tiny.tree["stages"][0]["start"] = {"code": 0.67, "german": 0.33, "mathematics": 0}
    config = tiny.load()
    assert check_before(config) == []
    assert oddities(config) == ["stages.0.start: mathematics: not trained on before the first decision"]


def test_a_run_that_never_decides_is_told_unless_its_strategy_is_not_to(tiny: TinyRun) -> None:
    tiny.tree["stages"][0]["decide_at"] = []
    (line,) = oddities(tiny.load())
    assert line.startswith("stages: no decision; decide_at [0.0, 0.3] decides before")
    assert examine(tiny.load())["cost"]["decisions"] == 0
    assert oddities(tiny.load("strategy=uniform")) == []
    tiny.tree["stages"][0]["domains"] = ["code"]
    assert oddities(tiny.load()) == []


def test_what_a_run_will_cost(tiny: TinyRun) -> None:
    tiny.tree["data"]["cache"] = str(tiny.directory / "cache")
    cost = examine(tiny.load())["cost"]
    assert (cost["steps"], cost["tokens"], cost["decisions"]) == (12, 12 * 4 * 32, 1)
    assert cost["deciding"] == cost["flops"]["deciding"] / cost["flops"]["training"] > 0
    weights = cost["bytes"]["model"] / 4
    assert cost["bytes"]["checkpoint"] == 12 * weights
    stored = sum(file.stat().st_size for file in Path(tiny.tree["data"]["cache"]).rglob("*.arrow"))
    assert cost["bytes"]["data"] == pytest.approx(stored, rel=0.1)
    seconds = cost["seconds"]
    assert seconds["training"] == pytest.approx(cost["tokens"] / cost["tokens_per_second"])
    assert seconds["total"] == pytest.approx(sum(seconds.values()) - seconds["total"])


def test_a_model_that_no_machine_holds_is_not_timed(tiny: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "PER_WEIGHT", 1e12)
    monkeypatch.setattr(forecast, "joins_ray", lambda _: False)  # other tests may have left a Ray
    cost = examine(tiny.load())["cost"]
    assert cost["seconds"] is None
    assert "free memory" in cost["untimed"]
    assert cost["flops"]["training"] > 0


def test_where_a_ray_is_one_of_its_workers_times_the_step(
    tiny: TinyRun, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "PER_WEIGHT", 1e12)  # in this process it would not be timed
    assert examine(tiny.load())["cost"]["tokens_per_second"] > 0
