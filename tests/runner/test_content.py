"""Everything that a run reads is part of what it is, by content: what changed is named, what only moved goes on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opmix_ray import plugins
from opmix_ray.config import RunConfig, dump_config, load_config
from opmix_ray.data.prepare import prepare
from opmix_ray.data.tokenizer import tokenizer_fingerprint
from opmix_ray.output.state import identity, open_output
from opmix_ray.runner.trust import changed, fingerprint
from opmix_ray.sources.source import Document
from opmix_ray.storage import Storage
from tests.data.conftest import make_config as make_config
from tests.data.conftest import sentences, small_tokenizer
from tests.data.conftest import tokenizer as tokenizer
from tests.data.conftest import tokenizer_dir as tokenizer_dir
from tests.data.conftest import write_rows as write_rows

Rows = list[dict[str, Any]]


@pytest.fixture
def make(
    make_config: Callable[..., RunConfig], write_rows: Callable[..., str], tokenizer_dir: str, tmp_path: Path
) -> Callable[..., RunConfig]:
    """A configuration over files in a folder: two domains, a set, and a set of questions."""

    def build(folder: str = "one", a: Rows | None = None, t: Rows | None = None, q: str = "two") -> RunConfig:
        asked = [{"ask": f"{n} and {n}?", "say": q} for n in range(8)]
        questions = {"path": write_rows(f"{folder}/q.jsonl", asked), "metric": "exact_match"}
        tokens = shutil.copytree(tokenizer_dir, tmp_path / folder / "tok", dirs_exist_ok=True)
        config = make_config(
            sets={
                "t": {"path": write_rows(f"{folder}/t.jsonl", t or sentences(20, 500))},
                "q": {**questions, "prompt_column": "ask", "answer_column": "say"},
            },
            tokenizer={"path": str(tokens)},
            a={"path": write_rows(f"{folder}/a.jsonl", a or sentences(80))},
            b={"path": write_rows(f"{folder}/b.jsonl", sentences(80, 200))},
        )
        model = tmp_path / folder / "model"
        model.mkdir(exist_ok=True)
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").write_bytes(b"\1" * 100)
        return config.but(model=config.model.at(model))

    return build


def differences(one: RunConfig, other: RunConfig) -> list[str]:
    before = fingerprint(one, prepare(one))
    return [str(error) for error in changed(before, fingerprint(other, prepare(other)))]


def test_the_same_files_under_another_path_are_the_same_run(
    make: Callable[..., RunConfig], tmp_path: Path
) -> None:
    one, other = make("one"), make("two")
    assert one.data.domains["a"].path != other.data.domains["a"].path
    assert identity(one) == identity(other)
    assert differences(one, other) == []
    storage = Storage(str(tmp_path / "out"))
    state = open_output(one, storage, resume=False, overwrite=False)
    state.done = 1
    state.save(storage)
    assert open_output(other, storage, resume=True, overwrite=False).done == 1


def test_held_out_documents_alone_are_named(make: Callable[..., RunConfig]) -> None:
    rows = sentences(80)
    others = [row for row in sentences(40, 900) if Document(text=row["text"]).digest() / 2**64 < 0.3]
    place = next(n for n, row in enumerate(rows) if Document(text=row["text"]).digest() / 2**64 < 0.3)
    (line,) = differences(make("one"), make("two", a=[*rows[:place], others[0], *rows[place + 1 :]]))
    assert line.startswith("data.domains.a: its held-out documents are not those that this run began with")


def test_training_text_sets_and_questions_are_named(make: Callable[..., RunConfig]) -> None:
    assert [line.partition(": ")[0] for line in differences(make(), make("two", a=sentences(80, 3000)))] == [
        "data.domains.a"
    ]
    assert differences(make(), make("two", t=sentences(20, 600)))[0].startswith(
        "evaluation.sets.t: holds other"
    )
    assert differences(make(), make("two", q="three"))[0].startswith("evaluation.sets.q: holds other text")


def test_another_tokenizer_and_other_weights_are_named(
    make: Callable[..., RunConfig], tmp_path: Path
) -> None:
    one, other = make("one"), make("two")
    (tmp_path / "two" / "model" / "model.safetensors").write_bytes(b"\2" * 100)
    assert [line.partition(";")[0] for line in differences(one, other)] == [
        "model.path: holds another model than when this run began"
    ]
    file = tmp_path / "two" / "tok" / "tokenizer.json"
    tree = json.loads(file.read_text())
    tree["model"]["merges"] = tree["model"]["merges"][:-5]
    file.write_text(json.dumps(tree))
    assert [line.partition(";")[0] for line in differences(make("three"), other)] == [
        "tokenizer.path: is another tokenizer than when this run began"
    ]


def test_spaces_tasks_and_code_are_known_by_content(
    make: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site"
    info = package / "mine-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[opmix_ray.objectives]\nours = mine.objective:weights\n")
    (package / "mine").mkdir()
    (package / "mine" / "__init__.py").write_text("")
    (package / "mine" / "objective.py").write_text("from mine.by import one\n")
    (package / "mine" / "by.py").write_text("one = 1\n")
    monkeypatch.syspath_prepend(str(package))
    plugins._points.cache_clear()

    def built(folder: str) -> RunConfig:
        config = make(folder)
        (tmp_path / folder / "space.yaml").write_text("kind: simplex\n")
        (tmp_path / folder / "tasks").mkdir()
        (tmp_path / folder / "tasks" / "own.yaml").write_text("task: own\n")
        places = [
            f"search.space={tmp_path / folder / 'space.yaml'}",
            f"stages.0.search_space={tmp_path / folder / 'space.yaml'}",
            f"evaluation.harness={{tasks: [own], include_path: {tmp_path / folder / 'tasks'}}}",
            "evaluation.objective=ours",
        ]
        (tmp_path / folder / "run.yaml").write_text(dump_config(config))
        return load_config(tmp_path / folder / "run.yaml", places)

    one, two = built("one"), built("two")
    assert identity(one) == identity(two)
    assert differences(one, two) == []
    before = fingerprint(one, prepare(one))
    (tmp_path / "two" / "space.yaml").write_text("kind: grouped\n")
    (tmp_path / "two" / "tasks" / "own.yaml").write_text("task: other\n")
    (package / "mine" / "by.py").write_text("one = 2\n")
    found = [str(error).partition(";")[0] for error in changed(before, fingerprint(two, prepare(two)))]
    assert found == [
        "search.space: holds other text than when this run began",
        "stages.0.search_space: holds other text than when this run began",
        "evaluation.harness.include_path: holds other tasks than when this run began",
        "evaluation.objective: has other code than when this run began",
    ]
    plugins._points.cache_clear()


def test_a_token_that_the_template_writes_belongs_to_the_tokenizer() -> None:
    one, other = (small_tokenizer("{{ bos_token }}{{ messages[0].content }}") for _ in range(2))
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(other)
    one.bos_token, other.bos_token = "the", "and"
    assert tokenizer_fingerprint(one) != tokenizer_fingerprint(other)


def test_a_file_with_the_times_of_another_is_read_again(
    make: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = make()
    before, file = fingerprint(config, prepare(config)), tmp_path / "one" / "t.jsonl"
    times, content = file.stat(), file.read_bytes()
    file.write_bytes(content.replace(b"sentence", b"SENTENCE").replace(b"number", b"riddle"))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    (line,) = changed(before, fingerprint(config, prepare(config)))
    assert str(line).startswith("evaluation.sets.t: holds other text")
