"""Commands that the pages print and that need no training are run as they stand there, on a run that never was."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Opmix
from tests.cli.conftest import opmix as opmix
from tests.docs.blocks import commands
from tests.report.synthetic import make_run

READERS = ("status", "watch", "report", "study", "export", "design", "fit", "predict", "memory")
ELSEWHERE = (
    "--web",
    "--open",
    "s3://",
    "mine.yaml",
    "examples/plans/",
)  # a server, a browser, a bucket; seen elsewhere


def printed() -> list[str]:
    """Every different command of a page that can be run here; those that read what others wrote come last."""
    found = {shlex.join(words) for _, words in commands("opmix") if words[0] in READERS}
    here = [line for line in found if not any(word in line for word in ELSEWHERE)]
    return sorted(here, key=lambda line: (line.startswith("predict") or "--earlier" in line, line))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pages' files are: two finished runs and a sweep."""
    directory = tmp_path_factory.mktemp("pages")
    for name in ("mine", "mine-uniform"):
        make_run(
            directory / "runs" / name,
            decisions=1,
            trials=6,
            domains=("code", "prose", "german"),
            steps=60,
            bad_rows=False,
        )
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(3), size=9)
    losses = 3 - 0.2 * np.log(shares[:, :2] + 0.02) + rng.normal(0, 0.01, (9, 2))
    columns = {"web": shares[:, 0], "code": shares[:, 1], "books": 1 - shares[:, 0] - shares[:, 1]}
    metrics = {"eval/web": losses[:, 0], "code_loss": losses[:, 1]}
    scores = {"acc": 0.9 - 0.1 * losses[:, 0], "f1": 0.8 - 0.1 * losses[:, 1]}
    for name, table in (
        ("ratios", columns),
        ("more", columns),
        ("metrics", metrics),
        ("scores", {**metrics, **scores}),
        ("sizes", {"params": np.repeat([70e6, 410e6], [5, 4]), **metrics}),
    ):
        rows = [f"r{n}," + ",".join(f"{float(column[n]):.6f}" for column in table.values()) for n in range(9)]
        (directory / f"{name}.csv").write_text("\n".join(["run," + ",".join(table), *rows]) + "\n")
    return directory


def test_commands_that_only_read_end_well(place: Path, opmix: Opmix, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    lines = printed()
    assert {line.split()[0] for line in lines} == {
        "status",
        "watch",
        "report",
        "study",
        "export",
        "design",
        "fit",
        "predict",
    }
    for line in lines:
        words = shlex.split(line)
        if (
            words[0] == "fit"
        ):  # intervals take the time; a table of scores, or of sizes, where the page has one
            words += ["--bootstrap", "0"]
            words = ["scores.csv" if w == "metrics.csv" and "--maximise" in words else w for w in words]
            words = ["sizes.csv" if w == "metrics.csv" and "--target-size" in words else w for w in words]
        ended = opmix(*words)
        assert ended.code == 0, f"opmix {line}: {ended.err}"
        assert ended.out.strip(), f"opmix {line}"
