"""Help, version, options that do not exist, and output for programs and pipes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

import opmix_ray
from opmix_ray.cli import app
from tests import support
from tests.cli.conftest import Opmix
from tests.support import ROOT, TinyRun

HEAVY = ("torch", "ray", "transformers", "optuna", "pyarrow", "scipy", "sklearn", "numpy", "pydantic", "rich")


def _commands() -> list[str]:
    return [command.name or command.callback.__name__ for command in app.registered_commands]


def test_version(opmix: Opmix) -> None:
    ended = opmix("--version")
    assert (ended.code, ended.out, ended.err) == (0, f"opmix {opmix_ray.__version__}\n", "")


@pytest.mark.parametrize("arguments", [("--help",), ()])
def test_help_has_one_line_for_every_command(opmix: Opmix, arguments: tuple[str, ...]) -> None:
    ended = opmix(*arguments)
    assert ended.code == 0
    listed = ended.out.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == _commands()
    assert all(len(line) <= 80 and len(line.split()) > 2 and "..." not in line for line in listed)


@pytest.mark.parametrize("command", _commands())
def test_every_command_has_help_and_json(opmix: Opmix, command: str) -> None:
    ended = opmix(command, "--help")
    assert ended.code == 0
    assert "--json" in ended.out
    assert "\x1b" not in ended.out


def test_the_command_line_alone_imports_neither_torch_nor_ray() -> None:
    code = "import sys, opmix_ray.cli; print([m for m in sys.argv[1:] if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code, *HEAVY], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout.strip() == "[]"


def test_looking_at_a_run_needs_neither_torch_nor_ray() -> None:
    """They take most of the seconds of `opmix status`."""
    code = "import sys, opmix_ray.commands.follow; print({'torch', 'ray'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "set()"


def test_help_is_there_at_once() -> None:
    """What help imports is what it takes: modules are counted, since seconds are the machine's."""
    code = (
        "import sys, atexit, opmix_ray.cli as c;"
        "atexit.register(lambda: print(len(sys.modules), *sys.modules, file=sys.stderr));"
        "sys.argv = ['opmix', 'run', '--help']; c.main()"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    count, *modules = found.stderr.split()
    assert int(count) < 450  # torch alone brings a thousand
    assert not set(modules) & set(HEAVY) - {"rich", "pydantic"}  # typer itself takes these


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["rnu"], "No such command 'rnu'. Did you mean 'run'?"),
        (["run", "--sett", "a=1"], "--sett"),
        (["run"], "Missing argument 'config'"),
        (["search", "x.yaml", "--step", "many"], "--step"),
    ],
)
def test_wrong_usage_is_one_line_that_says_where_to_look(
    opmix: Opmix, arguments: list[str], named: str
) -> None:
    line = opmix(*arguments).only_error()
    assert named in line
    assert "--help`" in line


def test_resume_and_overwrite_exclude_each_other(opmix: Opmix, tiny: TinyRun) -> None:
    line = opmix("run", tiny.write(), "--resume", "--overwrite").only_error()
    assert "--resume and --overwrite" in line
    assert "give one of them" in line


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("train.batch_size", "must look like key=value"),
        ("=8", "must look like key=value"),
        ("train..batch_size=8", "must look like key=value"),
        ("seed=[1", "not valid YAML"),
        ("stages.5.steps=1", "`5` is not one of the 1 entries"),
        ("seed.deep=1", "`seed` has no keys below it"),
        ("train.batch_sise=8", "did you mean `batch_size`?"),
        ("train.batch_size=none", "train.batch_size = none"),
        ("domains.web.path=x", "did you mean `data.domains` or `stages.0.domains`?"),
        ("train.learning_rate=1", "did you mean `train.optimizer.learning_rate`?"),
        ("stages[0].stepps=1", "stages.0.stepps = 1: unknown key; did you mean `steps`?"),
        ("train=8", "train = 8: must be a section of keys and values, such as {key: value}"),
        ("stages.0.decide_at=0.5", "must be a list, such as [first, second]"),
    ],
)
def test_a_setting_that_is_wrong_is_named(opmix: Opmix, tiny: TinyRun, setting: str, named: str) -> None:
    assert named in opmix("run", tiny.write(), "--set", setting).only_error()


def test_nothing_is_tokenised_where_a_setting_is_wrong(opmix: Opmix, tiny: TinyRun) -> None:
    cache = tiny.directory / "cache"
    tiny.tree["data"]["cache"] = str(cache)
    assert "did you mean" in opmix("validate", tiny.write(), "--set", "train.batch_sise=8").only_error()
    assert not cache.exists()
    assert opmix("validate", tiny.write()).code == 0
    assert cache.exists()


def test_a_source_that_is_not_a_section_is_shown_as_one(opmix: Opmix, tiny: TinyRun) -> None:
    ended = opmix("validate", tiny.write(), "--set", "data.domains.code=web.txt")
    assert ended.code == 2
    assert (
        "data.domains.code = web.txt: must be a section of keys and values, such as {path: web.txt}"
        in ended.err
    )


def test_json_is_one_document_and_errors_stay_on_stderr(opmix: Opmix, tiny: TinyRun) -> None:
    good = opmix("prepare", tiny.write(), "--json")
    assert (good.code, good.err) == (0, "")
    rows = json.loads(good.out)
    assert [row["domain"] for row in rows] == list(support.DOMAINS)
    valid = opmix("validate", tiny.write(), "--json")
    found = json.loads(valid.out)
    assert (found["valid"], found["config"]) == (True, str(tiny.file))
    assert "no such" in opmix("prepare", "nowhere.yaml", "--json").only_error()


def test_output_without_a_terminal_is_plain_and_not_folded(opmix: Opmix, tiny: TinyRun) -> None:
    ended = opmix("prepare", tiny.write())
    assert ended.code == 0
    assert "\x1b" not in ended.out
    table = ended.out.splitlines()[-4:]
    assert [line.split()[0] for line in table] == ["domain", *support.DOMAINS]


def test_infinite_numbers_are_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    from opmix_ray.commands.options import show

    show({"a": [float("nan"), (float("inf"), 1.5)]}, "", True)
    assert json.loads(capsys.readouterr().out) == {"a": [None, [None, 1.5]]}


def test_nobody_reads_the_output(tiny: TinyRun) -> None:
    """`opmix ... | head -0` ends without a traceback, with the code of a program that SIGPIPE ended."""
    script = f"{sys.executable} -m opmix_ray --help; echo code $? >&2"
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    time.sleep(0.1)
    process = subprocess.run(
        ["sh", "-c", script], stdout=reader.stdin, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False
    )
    assert process.stderr == "code 141\n"


def test_paths_in_a_configuration_are_relative_to_it(
    opmix: Opmix, tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same file gives the same data from wherever it is started."""
    (tmp_path / "nested").mkdir()
    (tmp_path / "nested" / "one.jsonl").write_text('{"text": ""}\n')
    tiny.tree["data"]["domains"] = {"one": {"path": "nested/one.jsonl"}}
    tiny.tree["stages"][0]["decide_at"] = []
    file = tiny.write()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    line = opmix("validate", file).only_error()
    assert str(tmp_path / "nested" / "one.jsonl") in line
    assert "holds no document" in line


def test_the_shell_completes_commands(tmp_path: Path) -> None:
    surroundings = os.environ | {
        "_OPMIX_COMPLETE": "complete_bash",
        "COMP_WORDS": "opmix st",
        "COMP_CWORD": "1",
    }
    words = [sys.executable, "-m", "opmix_ray"]
    found = subprocess.run(words, env=surroundings, capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(found.stdout.split()) == {"status", "study"}
    assert found.stderr == ""
    home = os.environ | {"HOME": str(tmp_path), "SHELL": "/bin/bash"}
    command = (
        f"{shlex.join(words)} --install-completion; exit $?"  # which shell it is, it reads off its parent
    )
    done = subprocess.run(
        ["bash", "-c", command], env=home, capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "bash completion installed" in done.stdout
    assert (tmp_path / ".bash_completions" / "opmix.sh").read_text()


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("fit", "--ratios", "a.csv", "--ratios", "b.csv", "--metrics", "m.csv"), "--ratios"),
        (("run", "a.yaml", "-o", "one", "--output", "two"), "--output"),
    ],
)
def test_an_option_given_twice_is_refused(opmix: Opmix, words: tuple[str, ...], key: str) -> None:
    """Else the last one would be taken without a word."""
    assert opmix(*words).only_error() == f"error: {key}: is given twice; give it once"


def test_what_may_come_several_times_may(opmix: Opmix) -> None:
    line = opmix("run", "gone.yaml", "--set", "seed=1", "--set", "name=a", "--json", "--json").only_error()
    assert line == "error: gone.yaml: no such file; check the path"
