"""Whose directory the output is: what is resumed, refused or removed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from opmix_ray.commands.follow import duration
from opmix_ray.output.state import RunState, open_output
from opmix_ray.storage import Storage
from tests.cli.conftest import Opmix
from tests.support import TinyRun


@pytest.fixture
def begun(tiny: TinyRun) -> Path:
    """The output of a run that has trained six steps."""
    config = tiny.load()
    storage = Storage(config.output_uri())
    open_output(config, storage, resume=False, overwrite=False)
    mixture = {"code": 0.5, "german": 0.25, "mathematics": 0.25}
    spent = {"main": {"tokens": 768, "flops": 2e9, "seconds": 90, "bytes": 0}}
    RunState(done=2, step=6, stage="only", checkpoint="train/00/c", mixture=mixture, ledger=spent).save(
        storage
    )
    storage.write_text("metrics.jsonl", "")
    storage.write_text("train/00/c/state.json", "{}")
    return Path(storage.uri)


@pytest.mark.parametrize("more", [(), ("--resume",)])
def test_another_configuration_is_refused_with_key_and_both_values(
    opmix: Opmix, tiny: TinyRun, begun: Path, more: tuple[str, ...]
) -> None:
    before = sorted(begun.rglob("*"))
    line = opmix(
        "run", tiny.file, "-o", begun, "--set", "seed=4", "--set", "probe.rank=2", *more
    ).only_error()
    assert f"{begun}: output: holds a run of another configuration" in line
    assert "probe.rank: 4 there, 2 here" in line
    assert "seed: 3 there, 4 here" in line
    assert ("put the old values back" in line) if more else ("use --overwrite" in line)
    assert sorted(begun.rglob("*")) == before


def test_resources_may_change(tiny: TinyRun, begun: Path) -> None:
    config = tiny.load(
        "train.workers=2", "search.evaluators=1", "cluster.num_cpus=4", "data.cache=/elsewhere"
    )
    assert open_output(config, Storage(str(begun)), resume=True, overwrite=False).step == 6


def test_overwrite_leaves_a_directory_with_foreign_files_as_it_is(
    opmix: Opmix, tiny: TinyRun, begun: Path
) -> None:
    (begun / "thesis.tex").write_text("years of work")
    before = sorted(begun.rglob("*"))
    line = opmix("run", tiny.file, "-o", begun, "--overwrite").only_error()
    assert (
        f"{begun}: --overwrite: holds files that are not a run's, such as thesis.tex; nothing was removed"
        in line
    )
    assert "move them away, or name another --output" in line
    assert sorted(begun.rglob("*")) == before


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
@pytest.mark.parametrize("files", [["notes.txt"], ["config.yaml", "model"], ["config.yaml"], ["model"]])
def test_a_directory_of_something_else_is_refused(
    opmix: Opmix, tiny: TinyRun, tmp_path: Path, files: list[str], more: tuple[str, ...]
) -> None:
    """`config.yaml` and `model` are common names, and not enough to be a run."""
    other = tmp_path / "other"
    other.mkdir()
    for name in files:
        (other / name).write_text("a: 1")
    if files == ["config.yaml"] and not more:
        pytest.skip("a lone config.yaml is what a crash leaves in a run's first moment")
    line = opmix("run", tiny.write(), "-o", other, *more).only_error()
    assert str(other) in line
    assert files[0] in line or files[-1] in line
    assert sorted(path.name for path in other.iterdir() if path.name != ".lock") == sorted(files)


def test_overwrite_removes_a_runs_files(tiny: TinyRun, begun: Path) -> None:
    (begun / ".state.json.77.part").write_text("{")
    (begun / "model.part").mkdir()
    state = open_output(tiny.load("seed=9"), Storage(str(begun)), resume=False, overwrite=True)
    assert (state.done, state.step) == (0, 0)
    assert sorted(path.name for path in begun.iterdir()) == ["config.yaml", "state.json"]


def test_a_run_that_never_began_does_not_stand_in_the_way(tiny: TinyRun) -> None:
    storage = Storage(tiny.load().output_uri())
    open_output(tiny.load(), storage, resume=False, overwrite=False)
    assert open_output(tiny.load("seed=9"), storage, resume=False, overwrite=False).done == 0
    assert "seed: 9" in storage.read_text("config.yaml")


def test_the_output_is_a_file_or_in_use(opmix: Opmix, tiny: TinyRun, begun: Path) -> None:
    from opmix_ray.output.lock import locked

    line = opmix("run", tiny.file, "-o", tiny.file).only_error()
    assert f"output = {tiny.file}: is a file; name a directory" in line
    with locked(Storage(str(begun))):
        line = opmix("run", tiny.file, "-o", begun).only_error()
    assert "another opmix process is writing here; wait for it or stop it" in line


@pytest.mark.parametrize("uri", ["s4://bucket/run", "gopher://x"])
def test_an_output_uri_that_is_none(opmix: Opmix, tiny: TinyRun, uri: str) -> None:
    line = opmix("run", tiny.write(), "-o", uri).only_error()
    assert f"output = {uri}" in line
    assert "use a path, s3:// or gs://" in line


def test_status_and_report_of_what_is_not_a_run(opmix: Opmix, tmp_path: Path) -> None:
    for command in ("status", "report"):
        line = opmix(command, tmp_path, "--json").only_error()
        assert line == f"error: {tmp_path}: is not the output of a run; name a run's output directory"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"version": 1, "stepp": 3}', b'{"version": 0}']
)
def test_a_state_that_is_broken(opmix: Opmix, begun: Path, content: bytes) -> None:
    (begun / "state.json").write_bytes(content)
    assert f"{begun}/state.json: " in opmix("status", begun).only_error()


@pytest.mark.parametrize("content", [b"", b"a: [", b"a: 1", b"\xff\xfe"])
def test_a_written_configuration_that_is_broken(opmix: Opmix, begun: Path, content: bytes) -> None:
    (begun / "config.yaml").write_bytes(content)
    assert f"{begun}/config.yaml: " in opmix("status", begun).only_error()


def test_a_configuration_of_another_version_names_the_key_and_not_how_to_remove_the_run(
    opmix: Opmix, begun: Path
) -> None:
    file = begun / "config.yaml"
    file.write_text(file.read_text() + "\nnew_key: 3\n")
    for command in ("status", "watch"):
        line = opmix(command, begun).only_error()
        assert f"{file}: new_key = 3: is not a run's configuration of this version" in line
        assert "with the version of opmix that wrote it" in line
        assert "--overwrite" not in line


def test_status_of_a_run_says_what_comes_next(opmix: Opmix, begun: Path) -> None:
    ended = opmix("status", begun, "--json")
    found = json.loads(ended.out)
    assert (found["step"], found["steps"], found["next"]) == (6, 12, "make decision 0 at step 6")
    assert (found["running"], found["last_step"], found["resumes_at"]) == (False, 6, 6)
    words = opmix("status", begun).out
    assert re.search(r"^tiny +stopped at step 6 of 12 \(50 %\), stage only$", words, re.MULTILINE)
    assert re.search(r"^next +make decision 0 at step 6$", words, re.MULTILINE)
    assert re.search(r"^trained +768 tokens, 2 GFLOPs, 90 s of workers$", words, re.MULTILINE)
    assert f"--output {begun} --resume (from step 6)" in words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (99, "99 s"), (150, "2 min"), (12_000, "3 h 20 min"), (2e5, "2 d 8 h")],
)
def test_durations_are_said_as_one_says_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize("value", [{"a": 1}, [], "x", None, 1.5, True])
@pytest.mark.parametrize(
    "key",
    [
        "done",
        "step",
        "stage",
        "mixture",
        "mixtures",
        "ledger",
        "rows",
        "sampler",
        "read",
        "begun",
        "old",
        "finished",
    ],
)
def test_a_wrongly_typed_state_is_one_line_or_read(
    opmix: Opmix, begun: Path, key: str, value: object
) -> None:
    state = json.loads((begun / "state.json").read_text()) | {key: value}
    (begun / "state.json").write_text(json.dumps(state))
    for command in ("status", "watch"):
        ended = opmix(command, begun, *(["--interval", "0.1"] if command == "watch" else []))
        if ended.code == 2:
            assert f"{begun}/state.json: " in ended.only_error()
        else:
            unfinished = command == "watch" and (key, value) != ("finished", True)
            assert (ended.code, ended.err) == (1 if unfinished else 0, "")
    assert opmix("report", begun).code == 0


_WRONG_ROWS = [
    '{"kind": "train", "step": "3"}',
    "[]",
    "3",
    '{"kind": 3}',
    '{"kind": "evaluation", "step": 1, "losses": []}',
    '{"step": 1}',
    "{",
    '{"kind": "train", "step": 1, "loss": {}, "tokens_per_second": 1}',
]


@pytest.mark.parametrize("line", _WRONG_ROWS)
def test_a_wrong_row_is_one_line_that_names_it(opmix: Opmix, begun: Path, line: str) -> None:
    with open(begun / "metrics.jsonl", "a") as file:
        file.write(line + "\n")
    number = len((begun / "metrics.jsonl").read_text().splitlines())
    for command in ("status", "watch"):
        assert f"{begun}/metrics.jsonl: line {number}: " in opmix(command, begun).only_error()
    assert opmix("report", begun).code == 0


def test_report_of_a_run_that_is_not_finished(opmix: Opmix, begun: Path) -> None:
    ended = opmix("report", begun, "--json")
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out) == {"report": str(begun / "report.html")}
    assert "<html" in (begun / "report.html").read_text()


def test_a_dry_run_says_what_the_run_will_cost_and_writes_nothing(opmix: Opmix, tiny: TinyRun) -> None:
    output = tiny.directory / "out"
    said = opmix("run", tiny.write(), "-o", output, "--dry-run", "--price-per-hour", "30")
    assert said.code == 0, said.err
    words = dict(line.split(maxsplit=1) for line in said.out.splitlines())
    assert words["training"].startswith("12 steps, 1,536 tokens, ")
    assert "% of training" in words["deciding"]
    assert words["time"].startswith("about ")
    assert words["money"].endswith(", at 30 an hour")
    found = json.loads(opmix("validate", tiny.file, "--price-per-hour", "30", "--json").out)["cost"]
    assert found["price"] == pytest.approx(30 * found["seconds"]["total"] / 3600)
    assert not output.exists()
    assert "needs --dry-run" in opmix("run", tiny.file, "--price-per-hour", "30").only_error()


@pytest.mark.parametrize("command", ["run", "search", "compare"])
@pytest.mark.parametrize("there", [False, True])
def test_what_is_refused_after_the_output_was_opened_leaves_it_as_it_was(
    opmix: Opmix, tiny: TinyRun, command: str, there: bool
) -> None:
    """Broken data are found when they are read, and an empty directory may have been made for the output."""
    data = tiny.directory / "broken.jsonl"
    data.write_text('{"text": "a line"}\n{"text": \n')
    tiny.tree["data"]["domains"]["code"]["path"] = str(data)
    output = tiny.directory / "out"
    if there:
        output.mkdir()
    opmix(command, tiny.write(), "-o", output).only_error()
    assert output.exists() == there
    assert not there or not list(output.iterdir())
