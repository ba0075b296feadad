"""`opmix fit` and `opmix predict` as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opmix_ray import cli
from tests.fit.test_fit_command import METRICS, write_sweep


def opmix(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["opmix", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.mark.seconds
def test_fit_then_predict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ratios, metrics = write_sweep(tmp_path)
    out = tmp_path / "out"
    files = ("--ratios", ratios, "--metrics", metrics, "--output", out)
    assert opmix(monkeypatch, "fit", *files, "--law", "linear", "--bootstrap", 10) == 0
    said = capsys.readouterr().out
    assert "linear on 24 runs" in said
    assert "web_prose" in said
    assert str(out / "fit.html") in said
    assert (
        opmix(monkeypatch, "predict", out, "--ratios", ratios, "--output", tmp_path / "p.csv", "--json") == 0
    )
    assert json.loads(capsys.readouterr().out)["rows"] == 24
    assert (tmp_path / "p.csv").read_text().splitlines()[0] == ",".join(
        ["run", *METRICS, "objective", "objective_std"]
    )


@pytest.mark.seconds
def test_json_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ratios, metrics = write_sweep(tmp_path)
    files = ("--ratios", ratios, "--metrics", metrics, "--output", tmp_path / "out")
    assert opmix(monkeypatch, "fit", *files, "--law", "linear", "--bootstrap", 0, "--json") == 0
    assert sum(json.loads(capsys.readouterr().out)["mixture"].values()) == pytest.approx(1)


def test_wrong_input_is_one_line_and_code_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ratios, metrics = write_sweep(tmp_path)
    (tmp_path / "caps.yaml").write_text("web_cod: 0.3\n")
    files = ("--ratios", ratios, "--metrics", metrics, "--output", tmp_path / "out")
    assert opmix(monkeypatch, "fit", *files, "--caps", tmp_path / "caps.yaml") == 2
    ended = capsys.readouterr()
    assert ended.out == ""
    assert ended.err.count("\n") == 1
    assert "caps.yaml" in ended.err
    assert "did you mean `web_code`" in ended.err
    assert not (tmp_path / "out").exists()
