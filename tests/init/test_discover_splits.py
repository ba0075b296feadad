"""Held-out splits are left out and named wherever training parts lie beside them; nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from opmix_ray.init.begin import look_at
from opmix_ray.init.discover import discover
from tests.init.test_discover import lay

BESIDE = {
    "a file more": (["train.jsonl", "test.jsonl", "extra.jsonl"], {"x": "train", "extra": "extra"}),
    "nanoGPT's": (["train.bin", "val.bin", "web.jsonl"], {"x": "train", "web": "web"}),
    "shards": (
        ["train-00000.jsonl", "train-00001.jsonl", "test-00000.jsonl", "code.jsonl"],
        {"x": "train-00000 train-00001", "code": "code"},
    ),
    "folders": (["train/b.jsonl", "validation/b.jsonl", "web/a.jsonl"], {"train": "b", "web": "a"}),
    "prefixes": (
        ["web_train.jsonl", "web_test.jsonl", "german.jsonl"],
        {"web": "web_train", "german": "german"},
    ),
    "several prefixes and a folder": (
        ["web_train.jsonl", "web_test.jsonl", "code_train.jsonl", "code_test.jsonl", "chat/a.jsonl"],
        {"web": "web_train", "code": "code_train", "chat": "a"},
    ),
    "several prefixes": (
        ["web-train.jsonl", "web-held-out.jsonl", "code.train.jsonl", "code.dev.jsonl"],
        {"web": "web-train", "code": "code.train"},
    ),
    "capitals": (
        ["codeTrain.jsonl", "codeEval2.jsonl", "WEB_TRAIN.jsonl", "WEB_TEST.jsonl"],
        {"code": "codeTrain", "WEB": "WEB_TRAIN"},
    ),
    "other letters": (
        ["русский_train.jsonl", "русский_test.jsonl", "немецкий_train.jsonl"],
        {"domain": "русский_train", "train": "немецкий_train"},
    ),
    "domains in splits": (
        ["train/web.jsonl", "train/code.jsonl", "test/web.jsonl", "test/code.jsonl"],
        {"web": "web", "code": "code"},
    ),
    "the same names in a folder": (
        ["web.jsonl", "code.jsonl", "test/web.jsonl", "test/code.jsonl"],
        {"web": "web", "code": "code"},
    ),
    "a domain of that name": (["web.jsonl", "web_eval.jsonl", "code.jsonl"], {"web": "web", "code": "code"}),
    "two validations": (
        ["train.jsonl", "dev_matched.jsonl", "dev_mismatched.jsonl", "web.jsonl"],
        {"x": "train", "web": "web"},
    ),
    "Hive's": (
        ["split=train/0.parquet", "split=test/0.parquet", "web/0.parquet"],
        {"split": "0", "web": "0"},
    ),
    "folders and files": (["web_train.jsonl", "web_test/a.jsonl", "b.jsonl"], {"web": "web_train", "b": "b"}),
    "several parts": (
        ["train_clean.jsonl", "train_other.jsonl", "dev_clean.jsonl", "test.jsonl"],
        {"clean": "train_clean", "other": "train_other"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BESIDE)
def test_splits_beside_other_domains(tmp_path: Path, case: str) -> None:
    names, wanted = BESIDE[case]
    root = lay(tmp_path / "x", *names)
    parts = discover([root])
    found = {part.name: " ".join(sorted(Path(file.path).stem for file in part.files)) for part in parts}
    if case == "several parts":  # one of the two is called what it is called
        found = {name.removeprefix("train_"): files for name, files in found.items()}
    assert found == wanted
    out = {path for part in parts for path in part.left_out}
    assert len(out) + sum(len(part.files) for part in parts) == len(names)
    assert all(not out & set(part.paths) for part in parts)


@pytest.mark.parametrize(
    "names",
    [
        ["web.jsonl", "code.jsonl", "test.jsonl", "holdout.jsonl"],
        ["web/data.jsonl", "code/data.jsonl", "test/data.jsonl"],
        ["train_web.jsonl", "unit_tests.jsonl", "code.jsonl"],
        ["web_train.jsonl", "code_test.jsonl", "german.jsonl"],
        ["latest.jsonl", "evaluated.jsonl", "trained.jsonl"],
    ],
)
def test_what_has_no_training_part_stays(tmp_path: Path, names: list[str]) -> None:
    parts = discover([lay(tmp_path / "x", *names)])
    assert sum(len(part.files) for part in parts) == len(parts) == len(names)


def test_programs_and_their_tests_are_no_splits(tmp_path: Path) -> None:
    for name in ("User.java", "UserTest.java", "read.go", "read_test.go"):
        (tmp_path / name).write_text("x = 1;\n" * 9000)
    assert sum(len(part.files) for part in discover([str(tmp_path)])) == 4


def test_splits_named_one_by_one_or_by_a_pattern(tmp_path: Path) -> None:
    root = lay(tmp_path / "x", "train/b.jsonl", "validation/b.jsonl", "web/a.jsonl")
    for data in ([f"{root}/train", f"{root}/validation", f"{root}/web"], [f"{root}/*/*.jsonl"]):
        files = {file.path for part in discover(data) for file in part.files}
        assert files == {f"{root}/train/b.jsonl", f"{root}/web/a.jsonl"}


def test_splits_are_named_in_what_is_said(tmp_path: Path) -> None:
    for name in ("web_train", "web_test", "german"):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(f'{{"text": "{name} number {i} is a sentence of some words"}}\n' for i in range(300))
        )
    said: list[str] = []
    assert [domain.name for domain in look_at([str(tmp_path)], said.append)] == ["german", "web"]
    assert said == [f"left out, as held-out splits beside what is trained on: {tmp_path}/web_test.jsonl"]
