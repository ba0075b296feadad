"""Checks that need the data: sizes, caps, spaces; each domain on its own."""

from __future__ import annotations

import pytest

from opmix_ray.errors import UserErrors
from opmix_ray.runner.validate import check_all, check_before, check_prepared, validate
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
        {"name": "one", "steps": 40, "domains": ["mathematics", "code"], "start": {"mathematics": 1}},
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
