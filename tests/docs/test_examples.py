"""Every example in the README and in docs/ is real: Python runs, YAML is a configuration, commands are understood."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from opmix_ray import plugins
from opmix_ray.cli import app
from opmix_ray.config import RunConfig, parse_config
from opmix_ray.trials.space import SpaceConfig
from tests.docs.blocks import PAGES, Block, blocks, commands
from tests.support import ROOT, TinyRun, opmix

MINIMAL: dict[str, Any] = {
    "model": {"path": "some/model"},
    "data": {"domains": {"a": {"path": "a.jsonl"}, "b": {"path": "b.jsonl"}}},
    "stages": [{"name": "only", "steps": 10}],
}
OTHERS = re.compile(
    r"^(apiVersion|cluster_name|datasets|interleave_probs):", re.MULTILINE
)  # of other programs
HEAVY = re.compile(r"ray\.init|opmix_ray\.discover\(|opmix_ray\.run\(|opmix_ray\.search\(|train_probes\(")


@pytest.mark.parametrize("block", [b for b in blocks("python") if not HEAVY.search(b.text)], ids=str)
def test_light_python_runs(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})
    assert "print" not in block.text or capsys.readouterr().out


@pytest.fixture(scope="module")
def place(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the examples name: files, a configuration, a checkpoint."""
    directory = tmp_path_factory.mktemp("examples")
    tiny = TinyRun(tiny_data, directory)
    tiny.write()
    (directory / "examples").mkdir()
    for name in ("opmix.yaml", "examples/quickstart.yaml"):
        (directory / name).write_text((directory / "run.yaml").read_text())
    for name, sources in (("web", ("german", "mathematics")), ("code", ("code",))):
        texts = [(tiny_data / f"{source}.jsonl").read_text() for source in sources]
        (directory / f"{name}.jsonl").write_text("".join(texts))
    done = opmix("run", str(directory / "run.yaml"), "--output", str(directory / "base"), "--set", "stages.0.steps=2",
                 "--set", "stages.0.decide_at=[]", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (directory / "checkpoint").symlink_to(directory / "base" / "model")
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in blocks("python") if HEAVY.search(b.text)], ids=str)
def test_heavy_python_runs(block: Block, place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block.text], capture_output=True, text=True, cwd=place, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", [b for b in blocks("yaml") if not OTHERS.search(b.text)], ids=str)
def test_yaml_is_a_configuration(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = yaml.safe_load(block.text)
    if "kind" in tree:
        parse_config(SpaceConfig, tree, block)
        return
    monkeypatch.setattr(plugins, "names", lambda kind: ["worst-first", "paragraphs", "by-group", "entropy"])
    config = parse_config(RunConfig, MINIMAL | tree, block)
    for stage in config.stages:
        known = set(config.data.domains)
        assert set(stage.domains or []) <= known or "data" not in tree


@pytest.mark.parametrize(
    ("line", "words"), commands("opmix"), ids=lambda value: value if isinstance(value, str) else ""
)
def test_commands_are_understood(line: str, words: list[str]) -> None:
    group = typer.main.get_command(app)
    name = words[0]
    if name.startswith("--"):
        return
    assert name in group.commands, f"{line}: no command {name}"  # type: ignore[attr-defined]
    words = [word.strip("[]").removesuffix("...") for word in words[1:]]
    group.commands[name].make_context(name, words)  # type: ignore[attr-defined]


NAMED = re.compile(r"`opmix ([a-z]+)( [^`]*)?`|^[#\s]*opmix ([a-z]+)( (?:[^\n]*\\\n)*[^\n]*)$", re.MULTILINE)


def test_options_that_are_named_anywhere_exist() -> None:
    """In sentences, comments and messages as well."""
    group = typer.main.get_command(app)
    kinds = (
        "*.md",
        "docs/*.md",
        "examples/**/*.yaml",
        "examples/**/*.py",
        "benchmarks/**/*.py",
        "opmix_ray/**/*.py",
    )
    seen, wrong = 0, []
    for file in [file for kind in kinds for file in ROOT.glob(kind)]:
        for match in NAMED.finditer(file.read_text(encoding="utf-8")):
            name, rest = match[1] or match[3], match[2] or match[4] or ""
            known = {option for each in group.commands[name].params for option in each.opts}  # type: ignore[attr-defined]
            named = re.findall(r"(?<![\w-])--?[a-z][a-z-]*", rest)
            seen += len(named)
            wrong += [f"{file.name}: opmix {name} {option}" for option in named if option not in known]
    assert not wrong
    assert seen > 100


def test_jobs_are_submitted_with_the_token() -> None:
    """Ray's client sends none unless it is told to, and the heads of our files refuse it then."""
    with_jobs = [block for block in blocks() if re.search(r"^ray job submit", block.text, re.MULTILINE)]
    assert with_jobs
    assert [
        str(block) for block in with_jobs if "RAY_AUTH_MODE=token" not in block.text.split("ray job")[0]
    ] == []


def test_the_readme_is_short_and_its_result_ends_the_whole_table() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert 60 <= len(text.splitlines()) <= 80
    (result,) = re.findall(r"^```text\n(captured.*\n.*)\n```$", text, re.MULTILINE)
    assert f"\n{result}\n```\n" in (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert "`python benchmarks/problems.py judge`" in text


def test_there_are_examples_of_every_kind() -> None:
    assert len(blocks("python")) >= 5
    assert len(blocks("yaml")) >= 5
    assert {words[0] for _, words in commands("opmix")} >= {
        "init",
        "run",
        "watch",
        "search",
        "fit",
        "compare",
        "export",
    }


def test_every_command_is_in_the_documentation() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [name for name in typer.main.get_command(app).commands if f"opmix {name}" not in text]  # type: ignore[attr-defined]
    assert not missing


def test_extras_that_are_named_exist() -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for page in PAGES:
        for extra in re.findall(r"opmix_ray\[([\w,-]+)\]", page.read_text(encoding="utf-8")):
            assert set(extra.split(",")) <= set(known), f"{page.name}: {extra}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_messages_in_troubleshooting_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    source = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "opmix_ray").rglob("*.py"))
    messages = re.findall(r"^\| `([^`]+)`", text, flags=re.MULTILINE)
    assert len(messages) > 20
    assert [message for message in messages if message.strip() not in source] == []


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if page.name not in text] == []


def test_the_gallery_shows_every_report_that_it_has() -> None:
    shown = re.findall(r"gallery/([\w.-]+)", (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8"))
    assert {file.name for file in (ROOT / "docs" / "gallery").iterdir()} == set(shown)
