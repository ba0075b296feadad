"""One candidate mixture: move the shared model to `theta(w)` and measure it; no copy of the model is made.

`CandidateScorer` works without Ray. `MixtureTrial` is the same as a `tune.Trainable`:

    trainable = tune.with_parameters(MixtureTrial, task=task)
    tune.run(trainable, search_alg=OptunaSearch(space=mixture_space(task.components.names), ...), ...)

`Evaluator` is what a decision's own search runs: several candidates at a time, and it can wait for them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import torch
from ray import tune

from opmix_ray.config.objective import Objective
from opmix_ray.config.run import PRICE
from opmix_ray.data.held_out import HeldOut, count_of, part_of, texts_of, tokens_of
from opmix_ray.model.architecture import forward_flops
from opmix_ray.model.base import join_base
from opmix_ray.model.interpolate import Interpolator, ProbeSet
from opmix_ray.model.loss import SetLoss
from opmix_ray.model.spread import Devices, visible_devices
from opmix_ray.trials.space import Components, Simplex, Space

PENALTY = 1e3  # objective of a candidate whose loss is not a number: worse than any loss


@dataclass(frozen=True)
class SearchTask:
    """All that an evaluator needs; small, because the arrays are references into the object store.

    Args:
        base: reference of a `BaseModel`.
        factors: reference of a `ProbeSet` without its base (`factors_only`).
        sets: reference of the held-out sequences by set.
        components: the probes' names and data.
        objective: what is minimised; weights by set mean the weighted mean loss.
        batch_size: sequences in a forward pass.
        chunks: parts of the sequences, after each of which a trial with `weights` reports.
        autocast: compute in bfloat16.
        space: turns drawn parameters into weights; none: the simplex.
    """

    base: Any
    factors: Any
    sets: Any
    components: Components
    objective: Objective | Mapping[str, float]
    batch_size: int = 16
    chunks: int = 1
    autocast: bool = True
    space: Space | None = None

    @classmethod
    def put(
        cls,
        base: Any,
        factors: ProbeSet,
        sets: HeldOut,
        objective: Objective | Mapping[str, float],
        **options: Any,
    ) -> SearchTask:
        """Put factors and held-out sequences into the object store, where the base is already.

        Args:
            base: object reference of a `BaseModel`.
            factors: from `factors_only`.
            sets: held-out sequences by set.
            objective: what is minimised.
            options: the task's other attributes.
        """
        components = Components(tuple(factors.components), tuple(factors.domains), factors.data)
        return cls(base, ray.put(factors), ray.put(sets), components, objective, **options)


@dataclass
class Score:
    """What a candidate's forward passes gave so far.

    Attributes:
        losses: set -> nats and tokens of every sequence seen.
        objective: what is minimised.
        tokens: passed through the model.
        flops: spent on them.
        done: whether every sequence was seen.
        slopes: set -> derivative of its loss by the weight of every component, (C,); empty where not asked for.
    """

    losses: dict[str, SetLoss]
    objective: float
    tokens: int
    flops: float
    done: bool
    slopes: dict[str, np.ndarray] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """What Tune is told, as plain values."""
        finite = math.isfinite(self.objective)
        return {
            "objective": self.objective if finite else PENALTY,
            "finite": finite,
            "sequences": sum(len(loss.nats) for loss in self.losses.values()),
            "tokens": self.tokens,
            "flops": self.flops,
            "nats": {name: loss.nats.tolist() for name, loss in self.losses.items()},
            "targets": {name: loss.tokens.tolist() for name, loss in self.losses.items()},
            "slopes": {name: values.tolist() for name, values in self.slopes.items()},
        }


class CandidateScorer:
    """Scores candidates one after the other in this process.

    Args:
        probe_set: base and factors; shared arrays are only read.
        sets: held-out sequences by set; the same for every candidate, so that comparisons are paired.
        objective: what is minimised; weights by set mean the weighted mean loss.
        batch_size: sequences in a forward pass.
        chunks: parts in which `scores` gives its results.
        autocast: compute in bfloat16.
        device: where to compute, possibly several; none: the first GPU, else the CPU.
    """

    def __init__(
        self,
        probe_set: ProbeSet,
        sets: HeldOut,
        objective: Objective | Mapping[str, float],
        *,
        batch_size: int = 16,
        chunks: int = 1,
        autocast: bool = True,
        device: Devices | None = None,
    ) -> None:
        self._model = Interpolator(probe_set, device=device, autocast=autocast)
        self._batch_size = batch_size
        self._objective, self._sets = Objective.of(objective), dict(sets)
        count = min(chunks, max(count_of(held) for held in sets.values()))
        edges = [[round(k * count_of(held) / count) for k in range(count + 1)] for held in sets.values()]
        self._chunks: list[HeldOut] = [
            {
                name: part_of(held, slice(edge[k], edge[k + 1]))
                for (name, held), edge in zip(sets.items(), edges, strict=True)
            }
            for k in range(count)
        ]
        length = max((ids.shape[1] for ids, _ in texts_of(sets).values()), default=1)
        self._flops_per_token = forward_flops(self._model.model, 1.0, length)

    def scores(self, weights: np.ndarray) -> Iterator[Score]:
        """The score after each chunk of sequences, for interpolation weights (C,)."""
        self._model.set(np.asarray(weights, dtype=np.float64))
        parts: dict[str, list[SetLoss]] = {name: [] for name in self._chunks[0]}
        tokens = 0
        for number, chunk in enumerate(self._chunks, start=1):
            for name, loss in self._measure(chunk).items():
                parts[name].append(loss)
            tokens += sum(tokens_of(held) for held in chunk.values())
            losses = {
                name: SetLoss(
                    np.concatenate([p.nats for p in part]), np.concatenate([p.tokens for p in part])
                )
                for name, part in parts.items()
            }
            done = number == len(self._chunks)
            yield Score(losses, self._weighed(losses), tokens, tokens * self._flops_per_token, done)

    def _weighed(self, losses: Mapping[str, SetLoss]) -> float:
        """The objective."""
        return self._objective.at({name: loss.mean for name, loss in losses.items()})

    def _measure(self, chunk: HeldOut) -> dict[str, SetLoss]:
        """Loss of every set, full batches across the borders of the sets of sequences."""
        texts = {name: held for name, held in texts_of(chunk).items() if len(held[0])}
        if len(texts) < 2:
            return self._model.losses(chunk, self._batch_size)
        ids, mask = (np.concatenate(column) for column in zip(*texts.values(), strict=True))
        rest = {name: held for name, held in chunk.items() if name not in texts}
        found = self._model.losses({"": (ids, mask), **rest}, self._batch_size)
        joined, start = found.pop(""), 0
        for name, held in texts.items():
            part = slice(start, start + len(held[0]))
            found[name] = SetLoss(joined.nats[part], joined.tokens[part])
            start = part.stop
        return {name: found[name] for name in chunk}

    def score(self, weights: np.ndarray) -> Score:
        """The score on every sequence."""
        *_, score = self.scores(weights)
        return score

    def score_with_slopes(self, weights: np.ndarray) -> Score:
        """The score on every sequence and, for sets of sequences, its derivatives; costs about three times `score`."""
        self._model.set(np.asarray(weights, dtype=np.float64))
        sets, texts = self._sets, texts_of(self._sets)
        found = self._model.gradients(texts, self._batch_size)
        losses = {name: loss for name, (loss, _) in found.items()}
        rest = {name: held for name, held in sets.items() if name not in texts}
        if rest:
            losses |= self._model.losses(rest, self._batch_size)
        once, thrice = (sum(tokens_of(sets[name]) for name in part) for part in (rest, texts))
        return Score(
            losses={name: losses[name] for name in sets},
            objective=self._weighed(losses),
            tokens=once + thrice,
            flops=(once + PRICE * thrice) * self._flops_per_token,
            done=True,
            slopes={name: slopes for name, (_, slopes) in found.items()},
        )


class MixtureTrial(tune.Trainable):
    """A candidate mixture as a class Trainable; its actor is reused, so the model is built once per actor.

    The configuration holds either `weights` (C,) or the parameters of the task's space. Reports `objective`
    (a finite number, `PENALTY` where a loss is not), `finite`, `eval_<set>_loss`, `sequences`, `tokens`, `flops`,
    and per sequence `nats` and `targets`, after each of the task's chunks.
    """

    def setup(self, config: dict[str, Any], task: SearchTask | None = None) -> None:
        """Build the model on the shared arrays."""
        if task is None:
            raise ValueError("use tune.with_parameters(MixtureTrial, task=SearchTask.put(...))")
        arrays = ray.get([task.base, task.factors, task.sets])
        self._task, self._space = task, task.space or Simplex(task.components)
        self._scorer = _scorer(self, task, arrays)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next candidate in the same actor."""
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        given = config.get("weights")
        self._weights = np.asarray(
            given if given is not None else self._space.weights(config), dtype=np.float64
        )
        self._scores = self._scorer.scores(self._weights)
        self._seconds = 0.0

    def step(self) -> dict[str, Any]:
        """Score the next chunk of sequences."""
        began = time.monotonic()
        score = next(self._scores)
        self._seconds += time.monotonic() - began
        return {
            **score.report(),
            "weights": self._weights.tolist(),
            "ratios": self._task.components.ratios(self._weights).tolist(),
            "scoring_seconds": self._seconds,
            **{f"eval_{name}_loss": loss.mean for name, loss in score.losses.items()},
            "done": score.done,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a candidate is its configuration."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load."""


class Evaluator(tune.Trainable):
    """An actor that scores what the desk gives it, turn by turn; the model is built once per actor.

    Reports `scored`: for each candidate of the turn what `Score.report` says, and `scoring_seconds`.
    """

    def setup(
        self, config: dict[str, Any], task: SearchTask | None = None, desk: Any = None, slopes: bool = False
    ) -> None:
        """Build the model on the shared arrays."""
        assert task is not None
        self._turn, self._desk = config["turn"], desk
        scorer = _scorer(self, task, ray.get(ray.get(desk.arrays.remote())))
        self._score = scorer.score_with_slopes if slopes else scorer.score

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next turn in the same actor."""
        self._turn = new_config["turn"]
        return True

    def step(self) -> dict[str, Any]:
        """Score the candidates of the turn, as soon as there are some."""
        batch = ray.get(self._desk.take.remote(self._turn))
        return {"scored": [self._scored(weights) for weights in batch], "done": True}

    def _scored(self, weights: np.ndarray) -> dict[str, Any]:
        began = time.monotonic()
        report = self._score(weights).report()
        return {**report, "scoring_seconds": time.monotonic() - began}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: an evaluator keeps nothing."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load."""


def _scorer(trainable: tune.Trainable, task: SearchTask, arrays: Sequence[Any]) -> CandidateScorer:
    """The scorer of an evaluator, on the CPUs and GPUs that it asked for.

    Args:
        trainable: the evaluator.
        task: what it scores.
        arrays: base, factors and held-out sequences of the task.
    """
    asked = trainable.trial_resources.required_resources if trainable.trial_resources else {}
    torch.set_num_threads(max(1, int(asked.get("CPU", 1))))
    base, factors, sets = arrays
    return CandidateScorer(
        join_base(factors, base),
        sets,
        task.objective,
        batch_size=task.batch_size,
        chunks=task.chunks,
        autocast=task.autocast,
        device=visible_devices(asked.get("GPU", 0)),
    )
