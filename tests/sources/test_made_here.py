"""What a run wrote and what was prepared is no data: it is left out of folders and named. Neither are models."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from opmix_ray.config import RunConfig, dump_config
from opmix_ray.data.prepare import prepare
from opmix_ray.errors import UserError
from opmix_ray.init.begin import look_at
from opmix_ray.init.discover import discover, ignored
from opmix_ray.output.state import RunState
from opmix_ray.sources.listing import expand
from opmix_ray.storage import Storage
from tests.object_store import object_store

Make = Callable[..., RunConfig]


def text(path: Path, word: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f'{{"text": "{word} number {i} is a sentence"}}\n' for i in range(3000)))


def output(path: Path, config: RunConfig) -> None:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(dump_config(config))
    RunState().save(Storage(str(path)))
    text(path / "metrics.jsonl", "metric")
    text(path / "decisions" / "000" / "trials.jsonl", "trial")
    (path / "report.html").write_text("<p>report</p>\n" * 9000)


def names(path: str) -> list[str]:
    return sorted(Path(file.path.partition("?")[0]).name for file in expand(path, key="k"))


@pytest.mark.parametrize("ending", ["jsonl", "txt"])
def test_an_output_and_a_cache_inside_a_domains_folder(
    ending: str, tmp_path: Path, make_config: Make, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    for name in ("a", "b"):
        text(data / name / f"x.{ending}", name)
    config = make_config(
        a={"path": str(data / "a")}, b={"path": str(data / "b")}, cache=str(data / "a"), seq_len=8
    )
    first = prepare(config)
    output(data / "a" / "runs" / "one", config)
    with caplog.at_level(logging.WARNING):
        assert names(str(data / "a")) == [f"x.{ending}"]
        assert prepare(config) == first
    assert f"{data}/a/runs/one" in caplog.text
    assert names(f"{data}/**/*.{ending}") == [f"x.{ending}"] * 2
    parts = discover([str(data)])
    assert [(part.name, len(part.files)) for part in parts] == [("a", 1), ("b", 1)]
    assert {f"{data}/a/runs/one", *(str(path) for path in (data / "a" / "domains").iterdir())} <= set(
        ignored([str(data)], parts)
    )


def test_an_output_that_is_named_is_read_and_one_in_a_folder_alone_is_refused(
    tmp_path: Path, make_config: Make
) -> None:
    output(tmp_path / "runs" / "one", make_config(a={"path": "a"}, b={"path": "b"}))
    assert "metrics.jsonl" in names(str(tmp_path / "runs" / "one"))
    with pytest.raises(UserError, match=r"holds nothing but outputs of runs .*; name the data"):
        expand(str(tmp_path / "runs"), key="k")


def test_a_saved_data_set_with_settings_beside_it_is_read(tmp_path: Path) -> None:
    text(tmp_path / "saved" / "a.jsonl", "a")
    (tmp_path / "saved" / "state.json").write_text('{\n  "_data_files": [],\n  "_fingerprint": "x"\n}')
    (tmp_path / "saved" / "config.yaml").write_text("a: 1\n")
    (tmp_path / "saved" / "manifest.json").write_text('{"version": 1, "files": []}')
    assert "a.jsonl" in names(str(tmp_path))


@pytest.mark.seconds
def test_an_output_in_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with object_store(tmp_path) as store:
        for name, value in store.environment().items():
            monkeypatch.setenv(name, value)
        storage = Storage(store.uri("web"))
        storage.write_text("a.jsonl", '{"text": "a"}\n')
        storage.write_text("runs/one/config.yaml", "name: one\n")
        RunState().save(storage.child("runs/one"))
        storage.write_text("runs/one/metrics.jsonl", '{"text": "a"}\n')
        assert names(store.uri("web")) == ["a.jsonl"]


TOKENIZER = {"tokenizer.json": '{"version": "1.0"}', "tokenizer_config.json": "{}", "vocab.txt": "a\nb\n"}
MODEL = {"config.json": "{}", "model.safetensors": "x", "generation_config.json": "{}", "vocab.json": "{}"}
OLDER = {"config.json": "{}", "pytorch_model-00001-of-00002.bin": "x", "training_args.bin": "x"}
PROGRAMS = {"pyvenv.cfg": "home = /usr", "lib/a.py": "x = 1\n" * 30_000, "lib/test.parquet": "PAR1"}


@pytest.mark.parametrize("files", [TOKENIZER, MODEL, OLDER, PROGRAMS])
def test_models_are_no_domains(files: dict[str, str], tmp_path: Path) -> None:
    for name in ("web", "code"):
        text(tmp_path / f"{name}.jsonl", name)
    for name, content in files.items():
        (tmp_path / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / name).write_text(content)
    said: list[str] = []
    assert [domain.name for domain in look_at([str(tmp_path)], said.append)] == ["code", "web"]
    (line,) = said
    assert line.startswith("ignored, as ")
    assert line.endswith(f": {tmp_path}/m")


@pytest.mark.parametrize("place", ["", "web"])
def test_data_beside_a_model_are_read(place: str, tmp_path: Path) -> None:
    for name, content in (TOKENIZER | MODEL).items():
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / name).write_text(content)
    text(tmp_path / place / "web.jsonl", "web")
    text(tmp_path / "code" / "a.jsonl", "code")
    parts = discover([str(tmp_path)])
    assert sorted((part.name, len(part.files)) for part in parts) == [("code", 1), ("web", 1)]


def test_token_files_beside_a_config_are_data(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.json").write_text("{}")
    (tmp_path / "c" / "web.bin").write_bytes(b"\1\0" * 900)
    (part,) = discover([str(tmp_path)])
    assert [Path(file.path).name for file in part.files] == ["web.bin"]
