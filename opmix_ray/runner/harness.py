"""lm-evaluation-harness tasks on the model that a run leaves, once, on one of its machines.

The tasks are those of EleutherAI's package, an optional extra: `opmix_ray[lm-eval]`.

measure_tasks("runs/demo/model", HarnessConfig(tasks=["hellaswag"], limit=100))
# {"hellaswag": {"acc": 0.31, "acc_stderr": 0.05, "acc_norm": 0.33, ...}}
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from pathlib import Path
from typing import Any

import ray

from opmix_ray.config import HarnessConfig, RunConfig
from opmix_ray.errors import UserError
from opmix_ray.node import use_own_threads
from opmix_ray.output.state import HARNESS
from opmix_ray.storage import Storage

KEY = "evaluation.harness"


def check_harness(config: HarnessConfig | None) -> list[UserError]:
    """Whether the package is there and knows the tasks."""
    if config is None:
        return []
    if importlib.util.find_spec("lm_eval") is None:
        return [UserError("needs lm-eval", key=KEY, remedy="pip install 'opmix_ray[lm-eval]'")]
    if config.include_path is not None and not Path(config.include_path).is_dir():
        return [
            UserError(
                "no such directory",
                key=f"{KEY}.include_path",
                value=config.include_path,
                remedy="check the path",
            )
        ]
    with _quiet():
        manager = _manager(config)
    return [
        UserError("no such task", key=f"{KEY}.tasks", value=task, remedy="see `lm-eval ls tasks`")
        for task in config.tasks
        if not manager.match_tasks([task])
    ]


def measure_tasks(
    directory: str | Path, config: HarnessConfig, batch_size: int = 8, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Run the tasks on a Hugging Face directory, on a GPU where there is one.

    Args:
        directory: model and tokenizer.
        config: which tasks, and how.
        batch_size: sequences in one forward pass.
        trust_remote_code: run model code that comes with the weights.

    Returns:
        Task -> metric -> value, as the harness names them; filters other than `none` follow the metric's name.
    """
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with _quiet():
        model = HFLM(
            pretrained=str(directory), device=device, batch_size=batch_size, dtype="auto",
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
        found = simple_evaluate(
            model=model,
            tasks=config.tasks,
            task_manager=_manager(config),
            num_fewshot=config.num_fewshot,
            limit=config.limit,
            bootstrap_iters=0,
            log_samples=False,
        )
    return {task: _numbers(values) for task, values in (found or {}).get("results", {}).items()}


def _manager(config: HarnessConfig) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=config.include_path)


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    numbers = {}
    for name, value in values.items():
        metric, _, kind = name.partition(",")
        if isinstance(value, int | float) and not isinstance(value, bool) and kind:
            numbers[metric if kind == "none" else f"{metric}_{kind}"] = float(value)
    return numbers


@contextlib.contextmanager
def _quiet() -> Any:
    """Without the harness's own words and bars: a run shows its own."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)


def run_harness(config: RunConfig, storage: Storage) -> dict[str, Any]:
    """Scores by task and metric, measured or found; empty where no task is named.

    Args:
        config: the run.
        storage: its output, with the model in it.
    """
    if config.evaluation.harness is None:
        return {}
    if not storage.exists(HARNESS):
        measure = ray.remote(_measure).options(
            num_cpus=config.train.cpus_per_worker, num_gpus=config.train.gpus_per_worker, name="harness"
        )
        storage.write_json(HARNESS, ray.get(measure.remote(storage.uri, config)))
    found: dict[str, Any] = storage.read_json(HARNESS)
    return found


def _measure(uri: str, config: RunConfig) -> dict[str, Any]:
    assert config.evaluation.harness is not None
    use_own_threads()
    with Storage(uri).local("model") as directory:
        return measure_tasks(
            directory,
            config.evaluation.harness,
            batch_size=config.evaluation.batch_size,
            trust_remote_code=config.model.trust_remote_code,
        )
