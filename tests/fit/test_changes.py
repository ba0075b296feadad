"""Domains that change do not strand a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opmix_ray.errors import UserError
from opmix_ray.fit import fit_command, read_sweep
from opmix_ray.fit.changes import read_changes
from opmix_ray.fit.sweep import Sweep
from tests.fit.test_fit_cli import opmix
from tests.fit.test_fit_command import write_sweep


def changed(place: Path, text: str) -> tuple[Sweep, Sweep]:
    """The sweep of `write_sweep` before and after changes."""
    sweep = read_sweep(*write_sweep(place))
    (place / "changes.yaml").write_text(text)
    return sweep, read_changes(place / "changes.yaml").applied(sweep)


def test_shares_follow_their_domains(tmp_path: Path) -> None:
    before, after = changed(
        tmp_path,
        "renamed: {web_maths: maths}\nsplit: {web_code: {python: 0.75, java: 0.25}}\nadded: [news]\n",
    )
    assert after.domains == ["web_prose", "maths", "python", "java"]
    assert after.unused == ["news"]
    code, prose, maths = before.ratios.T
    np.testing.assert_allclose(after.ratios, np.column_stack([prose, maths, 0.75 * code, 0.25 * code]))
    assert any("nothing tells them apart yet" in note for note in after.notes)
    assert any(note.startswith("`news` is 0 in every run") for note in after.notes)
    _, merged = changed(tmp_path, "merged: {text: [web_prose, web_maths]}\n")
    assert merged.domains == ["web_code", "text"]
    np.testing.assert_allclose(merged.ratios, np.column_stack([code, prose + maths]))


def test_runs_from_before_and_after_are_one_sweep(tmp_path: Path) -> None:
    ratios, metrics = write_sweep(tmp_path)
    lines = ratios.read_text().splitlines()
    text = [f"{lines[0]},python", *(f"{line}," for line in lines[1:]), "new,,0.5,0.1,0.4"]
    ratios.write_text("\n".join(text) + "\n")
    with metrics.open("a") as file:
        file.write("new,2.1,2.9\n")
    (tmp_path / "changes.yaml").write_text("split: {web_code: [python, java]}\n")
    sweep = read_changes(tmp_path / "changes.yaml").applied(read_sweep(ratios, metrics))
    assert len(sweep.runs) == 25
    assert dict(zip(sweep.domains, sweep.ratios[-1], strict=True)) == pytest.approx(
        {"web_prose": 0.5, "web_maths": 0.1, "python": 0.4, "java": 0.0}
    )
    assert not any("nothing tells them apart" in note for note in sweep.notes)


@pytest.mark.seconds
def test_a_removed_domain_is_in_the_law_and_not_in_the_proposal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratios, metrics = write_sweep(tmp_path)
    (tmp_path / "changes.yaml").write_text("removed: [web_prose]\nrenamed: {web_code: code}\n")
    files = {
        "ratios": ratios,
        "metrics": metrics,
        "output": tmp_path / "out",
        "changes": tmp_path / "changes.yaml",
    }
    given = [str(word) for name, value in files.items() for word in (f"--{name}", value)]
    assert opmix(monkeypatch, "fit", *given, "--law", "ridge", "--bootstrap", 0) == 0
    found = fit_command(**files, law="ridge", bootstrap=0)  # type: ignore[arg-type]
    assert found["mixture"]["web_prose"] == 0
    assert sum(found["mixture"].values()) == pytest.approx(1)
    assert set(found["columns"]["shares"]) == {"code", "web_prose", "web_maths"}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("renamd: {a: b}", "did you mean `renamed`"),
        ("renamed: {web_cod: code}", "did you mean `web_code`"),
        ("renamed: {web_code: 3}", "must be a name"),
        ("renamed: [web_code]", "must be a mapping"),
        ("split: {web_code: {a: 0.5, b: 0.3}}", "sum to 1"),
        ("split: {web_code: {a: yes, b: 0.3}}", "sum to 1"),
        ("split: {web_code: []}", "sum to 1"),
        ("merged: {all: web_code}", "must be a list of names"),
        ("merged: {x: [web_code], y: [web_code]}", "changes twice"),
        ("removed: [web_code]\nrenamed: {web_code: code}", "changes twice"),
        ("removed: [web_code, web_prose, web_maths]", "no domain is left"),
    ],
)
def test_wrong_input_is_one_line(tmp_path: Path, text: str, word: str) -> None:
    ratios, metrics = write_sweep(tmp_path)
    (tmp_path / "changes.yaml").write_text(text)
    options: dict[str, Any] = {"law": "ridge", "bootstrap": 0, "changes": tmp_path / "changes.yaml"}
    with pytest.raises(UserError, match=word) as error:
        fit_command(ratios, metrics, tmp_path / "out", **options)
    assert "\n" not in str(error.value)
