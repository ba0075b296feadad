"""A decision for a checkpoint trained elsewhere, on its trainer's token files and with its trainer's blend."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from opmix_ray.commands.export import export
from opmix_ray.config import dump_config
from tests.exchange.conftest import MIXTURE, Output
from tests.exchange.test_round_trip import main_file, read_back
from tests.support import DEMO, opmix


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory as another trainer's converter leaves it."""
    place = tmp_path_factory.mktemp("checkpoint")
    config = LlamaConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(DEMO / "tokenizer")), hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(place)
    return place


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "format"), [("megatron_run", "megatron"), ("olmo_run", "olmo-core"), ("hf_run", "datasets")]
)
def test_a_decision_goes_out_from_the_trainer_s_own_files(
    run: str, format: str, checkpoint: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    output: Output = request.getfixturevalue(run)
    old = export(str(output.directory), format, str(tmp_path / "old")).files[0]
    file = tmp_path / "search.yaml"
    file.write_text(dump_config(output.config))
    place = tmp_path / "found"
    done = opmix(
        "search", str(file), "--model", str(checkpoint), "--mixture", old, "--output", str(place), "--json",
        timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    decision = json.loads(done.stdout)
    assert decision["current"] == pytest.approx(MIXTURE)
    assert yaml.safe_load((place / "config.yaml").read_text())["model"]["path"] == str(checkpoint)
    assert "was asked what to train on next, for 12 steps" in (place / "report.html").read_text()
    found = export(str(place), format)
    assert read_back(main_file(found.files), output) == pytest.approx(decision["mixture"], abs=1e-9)
    again = export(str(place), "megatron-energon").weights  # lengths are in the search's output
    assert again != pytest.approx(decision["mixture"], abs=1e-3)
