"""Every benchmark still runs: the `--quick` mode of each, in a process of its own, as JSON; stacked models are ours."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from opmix_ray.model.load import load_model
from opmix_ray.model.loss import training_loss
from opmix_ray.train.loop import _optimizer
from tests.support import ROOT, TinyRun


@pytest.mark.long
@pytest.mark.parametrize("name", ["trial_cost", "throughput", "loader", "prepare", "gradient_rows"])
def test_a_benchmark_runs(name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--quick", "--json"],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.seconds
def test_models_trained_side_by_side_are_those_of_the_main_loop(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of `benchmarks/problems.py`: the losses of every token, and the weights after three steps."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from problem_bench.stacked import StackedLlamas

    config = tiny.load()
    plain = load_model(config.model, vocab_size=50, eos_token_id=0, seed=3, seq_len=16)
    stacked = StackedLlamas(
        config, {name: w.detach().numpy().copy() for name, w in plain.named_parameters()}, 2
    )
    optimizer, rng = _optimizer(plain, config.train), np.random.default_rng(0)
    for step in range(3):
        ids = torch.from_numpy(rng.integers(0, 50, (2, 4, 16)))
        mask = torch.from_numpy(rng.random((2, 4, 16)) < 0.9)
        mine = stacked.step(ids, mask, 1e-3 * (step + 1))[0]
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (step + 1)
        nats, targets, rows = training_loss(plain, ids[0], mask[0])
        (nats / targets).backward()
        if config.train.optimizer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(plain.parameters(), config.train.optimizer.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        np.testing.assert_allclose(mine.numpy(), rows.numpy(), rtol=1e-4)
    trained = stacked.one(0)
    for name, weight in plain.named_parameters():
        np.testing.assert_allclose(trained[name], weight.detach().numpy(), rtol=1e-3, atol=1e-5)
