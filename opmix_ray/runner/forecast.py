"""What a run will cost: FLOPs from shapes and counts alone, time from a few real steps on the machine that trains.

forecast = Forecast(config, prepared)
forecast.training("opmix"), forecast.searching("opmix")     # FLOPs
cost = estimate(config, prepared)                           # everything `opmix validate` says; see `estimate`

What a search may cost can itself depend on how long the stages are (`search.budget`), so a scale is searched for.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import psutil
import ray
import torch

from opmix_ray.cluster.connect import connected, joins_ray, own_cpus
from opmix_ray.cluster.demand import machines_now, of_main_run
from opmix_ray.config import ModelConfig, RunConfig
from opmix_ray.data.held_out import report_sets, tokens_of
from opmix_ray.data.prepare import Prepared
from opmix_ray.errors import UserError, first_line
from opmix_ray.mixture import Mixture
from opmix_ray.model.load import DTYPES, load_model
from opmix_ray.model.loss import compute_context, training_loss
from opmix_ray.runner.base import beginning, start_stage
from opmix_ray.runner.plan import evaluated_at, in_stage, plan, stage_domains, total_steps, with_strategy
from opmix_ray.strategies.base import Costs, Planned, strategy_of

STEPS = 3  # timed, after one that is not
SECONDS = 12.0  # after which no further step is timed


@dataclass(frozen=True)
class Speed:
    """A model's size and its training speed.

    Args:
        weights: without the embedding.
        tokens_per_second: of whole training steps, on one device.
    """

    weights: int
    tokens_per_second: float


def measure(
    model: ModelConfig,
    *,
    vocab_size: int,
    seq_len: int,
    batch_size: int,
    device: str,
    threads: int | None = None,
) -> Speed:
    """Train a model on random tokens for some steps.

    Args:
        model: a configuration for fresh weights, or a pretrained model.
        vocab_size: of the tokenizer.
        seq_len: tokens in a sequence.
        batch_size: sequences in a step.
        device: `cpu` or `cuda`.
        threads: that the process computes with from now on; None: as many as it does.

    Raises:
        UserError: the model cannot be made.
        RuntimeError: it does not fit into the memory.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    net: Any = load_model(model, vocab_size=vocab_size, eos_token_id=0, seed=0, seq_len=seq_len)
    where = torch.device(device)
    net = net.to(where).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    ids = torch.randint(0, vocab_size, (batch_size, seq_len), device=where)
    mask = torch.ones_like(ids, dtype=torch.bool)
    embedding = net.get_input_embeddings().weight.numel()

    def step() -> float:
        began = time.monotonic()
        with compute_context(model.autocast, where):
            nats, targets, _ = training_loss(net, ids, mask)
        (nats / targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if where.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic() - began

    step()
    began = time.monotonic()
    times: list[float] = []
    while len(times) < STEPS and time.monotonic() - began < SECONDS:
        times.append(step())
    weights = sum(parameter.numel() for parameter in net.parameters()) - embedding
    return Speed(weights, ids.numel() / min(times))


ROUNDS, CLOSE = 20, 1e-4  # of looking for a scale: at most, and how near two of them are at the end
# Seconds in which no token is trained. Nearly all are new processes: the command and Ray's own; a segment's
# controller, then its worker; a decision's probes, then its evaluators. Measured with the demo on two quiet cores: 57 s
# by the clock with a decision, of which 29.5 computed.
START, SEGMENT, DECISION = 12.0, 5.0, 6.0
# CPUs that the command and Ray's own processes take. With both of two cores a run trained on 24,000 tokens a second
# where the timed step had 34,000; with one of them on 15,700, for 16,300 to 19,300.
BESIDE = 0.5
SEVERAL = 0.85  # of the speed of one worker, where several exchange gradients
TIMED = 8192  # tokens in the timed step on CPUs, at most
PER_WEIGHT = 16  # bytes that the timed step needs: weight, gradient and two moments in float32
WAIT = 300.0  # seconds for a cluster to time the step


class Forecast:
    """FLOPs of runs of one configuration under any strategy.

    Args:
        config: the run.
        prepared: its data.
    """

    def __init__(self, config: RunConfig, prepared: Prepared) -> None:
        self._config, self._prepared, self.costs = config, prepared, Costs(config, prepared)

    def training(self, strategy: str, scale: float = 1.0) -> float:
        """FLOPs of the main run, with so many times its steps."""
        config = self._planned(strategy, scale)
        return strategy_of(config).training_cost(config, self.costs, lambda: self._mixtures(config))

    def searching(self, strategy: str, scale: float = 1.0) -> float:
        """FLOPs of probes, proxies and scoring, over all decisions and stages, in a run of so many times its steps."""
        config = self._planned(strategy, scale)
        way, total = strategy_of(config), 0.0
        begun = {name for name, share in beginning(config).mixture.items() if share > 0}
        for number, stage in enumerate(config.stages):
            total += way.live_cost(
                in_stage(config, number, begun), len(stage_domains(config, stage)), self.costs
            )
        for step in plan(config):
            if step.index >= 0:
                earlier = config.stages[: step.stage]
                known = begun | {name for stage in earlier for name in stage_domains(config, stage)}
                stage = config.stages[step.stage]
                begins = step.start == sum(one.steps for one in earlier)
                first = begins and (stage.restart or not earlier)
                planned = Planned(stage, stage_domains(config, stage), known, step.space, first)
                total += way.cost(in_stage(config, step.stage, begun), planned, self.costs)
        return total

    def scale(self, strategy: str, budget: float) -> float:
        """Factor on the steps with which training and searching together cost the budget.

        Raises:
            UserError: searching alone costs more.
        """
        whole = self.training(strategy)
        factor = 1.0
        for _ in range(ROUNDS):
            left = budget - self.searching(strategy, factor)
            if left <= 0:
                raise UserError(
                    f"its search alone costs {self.searching(strategy, factor) / budget:.1f} times the whole run",
                    key="--equal-compute", value=strategy,
                    remedy="train for more steps, shorten its search, or leave the strategy out",
                )  # fmt: skip
            before, factor = factor, left / whole
            if abs(factor - before) < CLOSE:
                break
        return factor

    def _mixtures(self, config: RunConfig) -> list[Mixture]:
        """The first mixture of every stage, where no decision changes one."""
        found, before = [], beginning(config)
        for position, stage in enumerate(config.stages):
            if stage.restart:
                before = beginning(config)
            start = start_stage(config, position, before, self._prepared)
            found.append(start.mixture)
            before = start.after(stage.steps * config.train.batch_size)
        return found

    def _planned(self, strategy: str, scale: float) -> RunConfig:
        named = with_strategy(self._config, strategy, scale)
        return strategy_of(named).plan(named)


def estimate(config: RunConfig, prepared: Prepared) -> dict[str, Any]:
    """What a run will cost.

    Args:
        config: the run, with its base.
        prepared: its data.

    Returns:
        `steps`; `tokens` trained on; `decisions`, how many; `flops`: by `training`, `deciding`, `evaluating`;
        `deciding`: FLOPs of deciding over those of training; `bytes`: `data` that was prepared, `checkpoint` and
        `model` that are written;
        `tokens_per_second` of all workers; `seconds` by `starting`, `training`, `deciding`, `evaluating`, and their
        sum `total`; both are None where no step could be timed, and `untimed` says why.
    """
    config = strategy_of(config).plan(config)
    forecast = Forecast(config, prepared)
    costs = forecast.costs
    training, deciding = forecast.training(config.strategy), forecast.searching(config.strategy)
    reported = report_sets(prepared, config.evaluation.sequences, config.search.sequences)
    evaluating = _evaluations(config) * sum(map(tokens_of, reported.values())) * costs.forward
    weights = sum(parameter.numel() for parameter in costs.model.parameters())
    model = float(weights * DTYPES[config.model.dtype].itemsize)
    tokens = total_steps(config) * config.train.batch_size * costs.length
    kept = 2 if config.train.keep == "best" else 1  # weights and moments in one checkpoint
    steps = plan(config)
    decisions = sum(1 for step in steps if step.index >= 0)
    found: dict[str, Any] = {
        "steps": total_steps(config),
        "decisions": decisions,
        "tokens": tokens,
        "flops": {"training": training, "deciding": deciding, "evaluating": evaluating},
        "deciding": deciding / training,
        "bytes": {
            "data": _data_bytes(prepared),
            "model": model,
            "checkpoint": kept * (model + 8.0 * weights),
        },
        "tokens_per_second": None,
        "seconds": None,
        "untimed": None,
    }
    try:
        speed = _speed(config, prepared, weights)
    except UserError as error:
        return found | {"untimed": error.problem}
    rate = speed * costs.train  # FLOPs a second
    segments = sum(1 for step in steps if step.end > step.start)
    seconds = {
        "starting": START + SEGMENT * segments + (DECISION * decisions if deciding else 0.0),
        "training": training / rate,
        "deciding": deciding / rate,
        "evaluating": evaluating / rate,
    }
    return found | {
        "tokens_per_second": speed,
        "seconds": {**seconds, "total": sum(seconds.values())},
    }


def _evaluations(config: RunConfig) -> int:
    """How often a run measures the reported sets."""
    return sum(len(evaluated_at(config, step)) for step in plan(config) if step.end > step.start)


def _data_bytes(prepared: Prepared) -> float:
    """Bytes of the prepared tokens of domains and sets."""
    width = 2 if prepared.vocab_size <= 1 << 16 else 4
    sources = {**prepared.eval_sets, **prepared.domains}.values()
    splits = (split for source in sources for split in source.manifest["splits"].values())
    return float(sum(split.get("sequences", 0) * prepared.seq_len * width for split in splits))


def _speed(config: RunConfig, prepared: Prepared, weights: int) -> float:
    """Tokens a second of all workers together, from one of them.

    Raises:
        UserError: no step can be timed, and why.
    """
    train = config.train
    rows = math.ceil(train.batch_size / train.workers)
    batch = min(rows, train.micro_batch_size or rows)
    cuda = train.gpus_per_worker > 0
    options: dict[str, Any] = {
        "vocab_size": prepared.vocab_size,
        "seq_len": prepared.seq_len,
        "batch_size": batch if cuda else max(1, min(batch, TIMED // prepared.seq_len)),
        "device": "cuda" if cuda else "cpu",
        "threads": max(1, int(train.cpus_per_worker)),
    }
    try:
        one = _there(config, options) if joins_ray(config) else _here(config, options, weights)
    except UserError:
        raise
    except Exception as error:  # of torch, of Ray, of code that came with a model
        raise UserError(f"no step could be timed: {first_line(error)}") from error
    workers, left = float(train.workers), 1.0
    if not joins_ray(config) and not cuda:
        workers = min(workers, max(1.0, own_cpus(config) / train.cpus_per_worker))
        left = speed_left(workers * options["threads"])
    return left * one.tokens_per_second * (workers if workers == 1 else SEVERAL * workers)


def speed_left(threads: float) -> float:
    """Share of a timed step's speed that a run on this machine's CPUs has, beside Ray and the command.

    Args:
        threads: that train.
    """
    have = float(os.cpu_count() or 1)
    return min(1.0, max(have - BESIDE, have / 2) / min(threads, have))


def _here(config: RunConfig, options: Mapping[str, Any], weights: int) -> Speed:
    if options["device"] == "cpu" and weights * PER_WEIGHT > psutil.virtual_memory().available:
        raise UserError("no step was timed: the model does not fit into this machine's free memory")
    threads = torch.get_num_threads()
    try:
        return measure(config.model, **options)
    finally:
        torch.set_num_threads(threads)


def _there(config: RunConfig, options: Mapping[str, Any]) -> Speed:
    """The same on a machine of the cluster that a worker would get."""
    with connected(config):
        demand = of_main_run(config)
        if not demand.places(machines_now()):
            raise UserError("no step was timed: the cluster has no machine for a worker yet")
        others = {kind: amount for kind, amount in demand.each.items() if kind not in ("CPU", "GPU")}
        task: Any = ray.remote(cast(Any, measure)).options(
            num_cpus=demand.each["CPU"], num_gpus=demand.each.get("GPU", 0), resources=others, max_retries=0
        )
        found = ray.get(task.remote(config.model, **options), timeout=WAIT)
        assert isinstance(found, Speed)
        return found
