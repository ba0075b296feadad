"""What `opmix fit` does with values that are of no use and with wrong options: one line says so."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opmix_ray.errors import UserError
from opmix_ray.fit import fit_command
from tests.fit.test_fit_command import write_sweep


def refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def spoilt(place: Path, value: str, rows: slice) -> tuple[Path, Path]:
    """The sweep of `write_sweep` with another value as the first metric of some runs."""
    ratios, metrics = write_sweep(place)
    head, *lines = [line.split(",") for line in metrics.read_text().splitlines()]
    for line in lines[rows]:
        line[1] = value
    metrics.write_text("\n".join(map(",".join, [head, *lines])) + "\n")
    return ratios, metrics


@pytest.mark.parametrize("value", ["1e300", "-1e160", "1.5e306", "inf", "1e40"])
def test_a_metric_too_large_for_squares_is_missing(tmp_path: Path, value: str) -> None:
    ratios, metrics = spoilt(tmp_path, value, slice(2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fit_command(ratios, metrics, tmp_path / "out", bootstrap=0)
    for name in ("law", "mixture", "fit"):
        json.loads((tmp_path / "out" / f"{name}.json").read_text(), parse_constant=refuse_constant)
    assert any(
        note.startswith("1 values of `eval/code_loss` are infinite or above") for note in found["notes"]
    )
    assert np.isfinite(found["gain"])


def test_a_metric_that_is_too_large_everywhere_is_refused(tmp_path: Path) -> None:
    ratios, metrics = write_sweep(tmp_path)
    lines = metrics.read_text().splitlines()
    metrics.write_text(
        "\n".join(
            [lines[0], *(f"{line.replace(',', 'e200,').replace('e200', '', 1)}e200" for line in lines[1:])]
        )
    )
    with pytest.raises(UserError, match="none of its metrics is a number") as error:
        fit_command(ratios, metrics, tmp_path / "out", bootstrap=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("", {"law": "rigde"}, "--law = rigde: unknown law; did you mean `ridge`"),
        ("", {"bootstrap": 3}, "--bootstrap = 3: an interval takes at least 10 refits"),
        ("{web_code: [0.6, 1], web_prose: [0.6, 1]}", "bounds", "options.yaml: no mixture meets all limits"),
        (
            "{web_code: 0.1, web_prose: 0.1, web_maths: 0.1}",
            "caps",
            "options.yaml: no mixture meets all limits",
        ),
        ("{no_worse_than: -5}", "objective", "options.yaml: no_worse_than: no mixture within the bounds"),
    ],
)
def test_wrong_options_are_named_as_they_were_given(
    tmp_path: Path, text: str, options: dict[str, Any] | str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_sweep(tmp_path)
    if isinstance(options, str):
        (tmp_path / "options.yaml").write_text(text)
        if options != "objective":  # which needs the law
            monkeypatch.setattr("opmix_ray.fit.command.fit_law", pytest.fail)
        options = {options: tmp_path / "options.yaml"}
    with pytest.raises(UserError, match=re.escape(said)) as error:
        fit_command(*files, tmp_path / "out", **{"law": "ridge", "bootstrap": 0, **options})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
