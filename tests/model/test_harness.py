"""lm-evaluation-harness on a task that lies in a local file; nothing is downloaded."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from opmix_ray.config import HarnessConfig
from opmix_ray.model.load import save_model
from opmix_ray.runner.harness import check_harness, measure_tasks
from tests.data.conftest import small_tokenizer
from tests.model.tiny_models import CONFIGS

THERE = importlib.util.find_spec("lm_eval") is not None
TASK = """
task: local_quiz
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{c}}}}"
doc_to_target: a
metric_list: [{{metric: acc}}]
"""


@pytest.fixture
def quiz(tmp_path: Path) -> HarnessConfig:
    rows = [{"q": f"{n} and one", "c": [" two", " three words"], "a": n % 2} for n in range(8)]
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "quiz.yaml").write_text(TASK.format(data=tmp_path / "quiz.jsonl"))
    return HarnessConfig(tasks=["local_quiz"], include_path=str(tmp_path), limit=6)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not THERE, reason="needs opmix_ray[lm-eval]")
def test_a_task_in_a_local_file(quiz: HarnessConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from opmix_ray.config import ModelConfig
    from opmix_ray.model.load import load_model

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tokenizer = small_tokenizer()
    config = ModelConfig(config=CONFIGS["llama"])
    save_model(load_model(config, vocab_size=len(tokenizer), eos_token_id=0, seed=0), tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    assert check_harness(quiz) == []
    found = measure_tasks(tmp_path / "model", quiz)
    assert list(found) == ["local_quiz"]
    assert found["local_quiz"]["acc"] * 6 == pytest.approx(round(found["local_quiz"]["acc"] * 6)), (
        "six questions"
    )
    unknown = quiz.but(tasks=["local_quiz", "no_such_task"])
    assert [error.value for error in check_harness(unknown)] == ["no_such_task"]


@pytest.mark.skipif(THERE, reason="it is installed")
def test_without_the_package_the_extra_is_named(quiz: HarnessConfig) -> None:
    (error,) = check_harness(quiz)
    assert (error.key, error.remedy) == ("evaluation.harness", "pip install 'opmix_ray[lm-eval]'")


def test_nothing_is_asked_without_tasks() -> None:
    assert check_harness(None) == []
