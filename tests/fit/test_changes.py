"""Domains that change do not strand a sweep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opmix_ray.errors import UserError
from opmix_ray.fit import fit_command, predict_command, read_sweep
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
    _, swapped = changed(tmp_path, "renamed: {web_code: web_prose, web_prose: web_code}\n")
    assert dict(zip(swapped.domains, swapped.ratios.T[:, 0], strict=True))["web_prose"] == code[0]
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


def fitted(place: Path, text: str | None = None, **options: Any) -> dict[str, Any]:
    """`opmix fit` of the sweep of `write_sweep`."""
    ratios, metrics = write_sweep(place)
    for name, content in {"changes": text, **options}.items():
        if isinstance(content, str):
            (place / f"{name}.yaml").write_text(content)
            options[name] = place / f"{name}.yaml"
    return fit_command(ratios, metrics, place / "out", **{"law": "ridge", "bootstrap": 0, **options})


@pytest.mark.parametrize("kl", [0.0, 0.05])
def test_parts_that_no_run_tells_apart_keep_their_proportions(tmp_path: Path, kl: float) -> None:
    whole = fitted(tmp_path, kl=kl, bootstrap=10)
    found = fitted(tmp_path, "split: {web_code: {python: 0.7, java: 0.3}}\n", kl=kl, bootstrap=10)
    code = whole["mixture"].pop("web_code")
    assert found["mixture"] == pytest.approx({**whole["mixture"], "python": 0.7 * code, "java": 0.3 * code})
    assert found["gain"] == pytest.approx(whole["gain"])
    assert found["gain_interval"] == pytest.approx(whole["gain_interval"])
    for name, at in whole["metrics"].items():
        assert found["metrics"][name] == pytest.approx(at)
    ranges = json.loads((tmp_path / "out" / "mixture.json").read_text())["weight_intervals"]
    assert ranges["python"][0] <= found["mixture"]["python"] <= ranges["python"][1]
    (tmp_path / "new.csv").write_text("run,web_prose,web_maths,python,java\na,.4,.2,.3,.1\nb,.4,.2,0,.4\n")
    predict_command(tmp_path / "out", tmp_path / "new.csv", tmp_path / "predicted.csv")
    first, second = np.genfromtxt(tmp_path / "predicted.csv", delimiter=",", skip_header=1)
    np.testing.assert_allclose(first[1:], second[1:])


def test_limits_of_parts_hold(tmp_path: Path) -> None:
    split = "split: {web_code: {python: 0.7, java: 0.3}}\n"
    found = fitted(tmp_path, split, bounds="python: [0, 0.05]\njava: [0.1, 1]\n")["mixture"]
    assert found["python"] == pytest.approx(0.05)
    assert found["java"] > 0.1
    alone = fitted(tmp_path, split, prior="{web_prose: 0.5, java: 0.4, web_maths: 0.1}\n")["mixture"]
    assert alone["python"] == 0 < alone["java"]


def test_only_parts_that_some_run_tells_apart_are_free(tmp_path: Path) -> None:
    ratios, metrics = write_sweep(tmp_path)
    lines = ratios.read_text().splitlines()
    new = ["a,,0.5,0.1,0.3,0.05,0.05", "b,,0.3,0.3,0.2,0.1,0.1", "c,,0.3,0.3,0.0,0.2001,0.1999"]
    text = [f"{lines[0]},python,java,rust", *(f"{line},,," for line in lines[1:]), *new]
    ratios.write_text("\n".join(text) + "\n")
    with metrics.open("a") as file:
        file.write("a,2.1,2.9\nb,2.2,2.8\nc,2.8,2.8\n")
    (tmp_path / "changes.yaml").write_text("split: {web_code: [python, java, rust]}\n")
    found = fit_command(
        ratios, metrics, tmp_path / "out", law="ridge", bootstrap=0, changes=tmp_path / "changes.yaml"
    )
    shares = found["mixture"]
    assert shares["java"] == pytest.approx(shares["rust"])
    assert shares["python"] > shares["java"]
    assert any("no run has `java`, `rust` in other proportions" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("merged: {all: [web_code, web_prose, web_maths]}", "have the same mixture"),
        ("renamed: {web_code: web_prose}", "another domain of this name"),
        ("renamed: {web_code: x, web_prose: x}", "another domain of this name"),
        ("merged: {web_prose: [web_code]}", "another domain of this name"),
        ("split: {web_code: {web_prose: 0.5, java: 0.5}}", "another domain of this name"),
        ("split: {web_code: [a, b], web_prose: [c, b]}", "another domain of this name"),
        ("added: [web_code]", "every run has this domain already"),
        ("renamed: {web_code: ' '}", "must be a name"),
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
