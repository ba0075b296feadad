"""The targets' own parsers read what is exported (packages of `make test-targets`; skipped where they are missing)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from opmix_ray.commands.export import export
from opmix_ray.sources import megatron
from tests.exchange.conftest import MIXTURE, Output
from tests.support import ROOT

TARGETS = Path(os.environ.get("OPMIX_TARGETS", Path(sys.prefix) / "targets"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not TARGETS.is_dir(), reason="make test-targets installs the targets' packages"),
]


def ask(format: str, output: Output, place: Path, **settings: Any) -> dict[str, Any]:
    """What the target reads out of the export."""
    files = export(str(output.directory), format, str(place), **settings).files
    found: dict[str, Any] = answer(
        format, next(file for file in files if not file.endswith("dataset_info.json"))
    )
    return found


def answer(question: str, file: str) -> Any:
    """What `ask_target.py` prints."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/exchange/ask_target.py"), question, file],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(TARGETS), "DISABLE_VERSION_CHECK": "1", "HF_HUB_OFFLINE": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def by_documents(output: Output) -> dict[str, float]:
    weights = {name: share / output.lengths()[name] for name, share in MIXTURE.items()}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def test_megatron_blend_and_index(megatron_run: Output, tmp_path: Path) -> None:
    found = ask("megatron", megatron_run, tmp_path)
    by_path = {megatron_run.paths()[name][0]: share for name, share in MIXTURE.items()}
    assert found["weights"] == pytest.approx(by_path)
    ours = megatron_run.prepared.domains["code"].manifest["splits"]
    assert found["documents"] == sum(part["documents"] for part in ours.values())


def test_what_megatron_writes_is_read(tmp_path: Path) -> None:
    documents = answer("build", str(tmp_path / "x"))
    assert [ids.tolist() for ids in megatron.documents(f"{tmp_path}/x.bin")] == documents


def test_nemo_blend(megatron_run: Output, tmp_path: Path) -> None:
    by_path = {megatron_run.paths()[name][0]: share for name, share in MIXTURE.items()}
    assert ask("nemo", megatron_run, tmp_path)["weights"] == pytest.approx(by_path)


def test_energon_metadata_set(text_run: Output, tmp_path: Path) -> None:
    assert ask("megatron-energon", text_run, tmp_path)["weights"] == pytest.approx(by_documents(text_run))


def test_olmo_core_draws_the_mixture(olmo_run: Output, tmp_path: Path) -> None:
    found = ask("olmo-core", olmo_run, tmp_path, tokens=100_000)
    assert found["weights"] == pytest.approx(MIXTURE)
    assert found["drawn"] == pytest.approx(MIXTURE, abs=0.01)


def test_torchtitan_reads_the_text(text_run: Output, tmp_path: Path) -> None:
    found = ask("torchtitan", text_run, tmp_path)
    assert found["weights"] == pytest.approx(MIXTURE)
    text = json.loads(Path(text_run.paths()["code"][0]).read_text().splitlines()[0])["text"]
    assert found["text"] == text.encode()[:16].decode(errors="replace")


def test_llamafactory_data_sets(text_run: Output, tmp_path: Path) -> None:
    found = ask("llamafactory", text_run, tmp_path)
    assert found["weights"] == pytest.approx(by_documents(text_run))
    assert found["sets"]["code"] == ["file", text_run.paths()["code"][0], "text"]


def test_axolotl_loads_the_rows(text_run: Output, tmp_path: Path) -> None:
    tokens = 1_000_000
    found = ask("axolotl", text_run, tmp_path, tokens=tokens)["weights"]
    for name, share in MIXTURE.items():
        rows = found[text_run.paths()[name][0]]
        assert rows * text_run.lengths()[name] == pytest.approx(share * tokens, rel=0.01)


def test_streaming_proportions(text_run: Output, tmp_path: Path) -> None:
    assert ask("streaming", text_run, tmp_path)["weights"] == pytest.approx(by_documents(text_run))
