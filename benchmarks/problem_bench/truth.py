"""Really train many mixtures from one prefix, and keep losses, curves and the prefix."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from opmix_ray.config import RunConfig
from opmix_ray.config.train import learning_rate
from opmix_ray.data.held_out import report_sets
from opmix_ray.data.prepare import Prepared, prepare
from opmix_ray.data.sampler import Sampler, SamplerState
from opmix_ray.data.store import gather
from opmix_ray.mixture import Mixture
from opmix_ray.model.load import load_model
from problem_bench.problem import Problem, as_array
from problem_bench.stacked import StackedLlamas

SEEDS = (0, 1)
FIRST, LATER = 16, 8  # mixtures trained at first, and near the optimum of a law fitted to them
SAME = 2e-3  # greatest difference of shares between mixtures that are called the same


class Bench:
    """One problem with one seed: data, prefix, and training from it."""

    at_once = 1 << 10  # mixtures that are trained side by side

    @classmethod
    def of(cls, problem: Problem, seed: int) -> Bench:
        """The bench that a problem needs."""
        if problem.pretrained:
            from problem_bench.pretrained import PretrainedBench

            return PretrainedBench(problem, seed)
        return cls(problem, seed)

    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem, self.seed = problem, seed
        self.config: RunConfig = problem.config(seed)
        self.prepared: Prepared = prepare(self.config)
        self.domains = list(self.config.data.domains)
        self.sets = report_sets(self.prepared, self.config.evaluation.sequences, self.config.search.sequences)
        self.aims = {n: self.sets[n] for n, weight in self.config.objective().items() if weight}
        self.stores = {name: self.prepared.domains[name].train() for name in self.domains}
        self.sizes = {name: len(store) for name, store in self.stores.items()}
        self.tokens = {n: float(d.train_tokens) for n, d in self.prepared.domains.items()}

    def start(self, domains: list[str]) -> Mixture:
        """The mixture of the prefix."""
        rule = self.problem.start
        if isinstance(rule, dict):
            return Mixture(rule)
        if rule == "uniform":
            return Mixture.uniform(domains)
        return Mixture.proportional({name: self.tokens[name] for name in domains})

    def rate(self, step: int) -> float:
        """Learning rate of a global step."""
        train, problem = self.config.train, self.problem
        if problem.new:
            part = (step, problem.prefix) if step < problem.prefix else (step - problem.prefix, problem.steps)
            return learning_rate(*part, train.optimizer, train.schedule)
        return learning_rate(step, problem.prefix + problem.steps, train.optimizer, train.schedule)

    def fresh(self) -> dict[str, np.ndarray]:
        """Weights of the configured model."""
        model: Any = load_model(
            self.config.model,
            vocab_size=self.prepared.vocab_size,
            eos_token_id=self.prepared.eos_token_id,
            seed=self.seed,
            seq_len=self.prepared.seq_len,
        )
        return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}

    def train(
        self, models: StackedLlamas, samplers: list[Sampler], start: int, end: int, at: tuple[int, ...] = ()
    ) -> tuple[list[list[list[float]]], dict[int, dict[str, list[float]]]]:
        """Train all models from one step to another.

        Returns:
            By step and model the nats and target tokens of every domain, and by step in `at` every set's losses.
        """
        curves, measured = [], {}
        for step in range(start, end):
            batches = [sampler.next_batch() for sampler in samplers]
            rows = [gather(self.stores, batch) for batch in batches]
            ids = torch.from_numpy(np.stack([r[0] for r in rows]))
            mask = torch.from_numpy(np.stack([r[1] for r in rows]))
            nats = models.step(ids, mask, self.rate(step)).numpy()
            targets = mask[:, :, 1:].sum(dim=2).numpy()
            here = []
            for model, batch in enumerate(batches):
                own = [self.domains.index(batch.domains[i]) for i in batch.domain_ids]
                here.append(
                    [np.bincount(own, part[model], minlength=len(self.domains)).round(3).tolist()
                     for part in (nats, targets)]
                )  # fmt: skip
            curves.append(here)
            if step + 1 in at:
                measured[step + 1] = {n: v.round(5).tolist() for n, v in models.losses(self.aims).items()}
        return curves, measured

    def prefix(self) -> dict[str, Any]:
        """Train the prefix; keeps weights and moments in a file of their own."""
        problem = self.problem
        domains = problem.known or self.domains
        mixture = self.start(domains)
        models = StackedLlamas(self.config, self.fresh(), 1)
        sampler = Sampler(self.sizes, self.config.train.batch_size, self.seed, mixture)
        marks = tuple(sorted({problem.prefix // 4, problem.prefix // 2, problem.prefix}))
        curves, measured = self.train(models, [sampler], 0, problem.prefix, marks)
        weights = {f"w/{name}": array for name, array in models.one().items()}
        for number, moments in enumerate(models.moments()):
            weights |= {f"m/{number}/{key}": array for key, array in moments.items()}
        file = problem.weights_file(self.seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **weights)
        return {
            "sampler": sampler.state.to_dict(),
            "mixture": mixture.shares,
            "curve": [step[0] for step in curves],
            "losses": {str(at): {n: v[0] for n, v in found.items()} for at, found in measured.items()},
        }

    def load_prefix(self, count: int) -> StackedLlamas:
        """Models that all stand where the prefix ended."""
        if not self.problem.weights_file(self.seed).exists():  # too large to be kept with the results
            self.prefix()
        kept = np.load(self.problem.weights_file(self.seed))
        weights = {name[2:]: kept[name] for name in kept if name.startswith("w/")}
        models = StackedLlamas(self.config, weights, count)
        moments = [
            {key: kept[f"m/{number}/{key}"] for key in ("exp_avg", "exp_avg_sq")}
            for number in range(len(models.weights))
        ]
        models.take_moments(moments, 0 if self.problem.new else self.problem.prefix)
        return models

    def runs(self, mixtures: list[Mixture], sampler: dict[str, Any]) -> list[dict[str, Any]]:
        """Train mixtures from the prefix; one record each."""
        problem = self.problem
        models = self.load_prefix(len(mixtures))
        state = SamplerState.from_dict(sampler)
        samplers = [
            Sampler(self.sizes, self.config.train.batch_size, self.seed, mixture, copy.deepcopy(state))
            for mixture in mixtures
        ]
        end = problem.prefix + problem.steps
        marks = (*(problem.prefix + round(problem.steps * f) for f in (0.4, 0.75)), end)
        curves, measured = self.train(models, samplers, problem.prefix, end, marks)
        total = np.array([[model[0] for model in step] for step in curves])
        return [
            {
                "mixture": mixture.shares,
                "losses": {
                    str(at): {n: v[number] for n, v in found.items()} for at, found in measured.items()
                },
                "nats": total[:, number].sum(axis=1).reshape(-1, 20).sum(axis=1).round(1).tolist()
                if len(total) % 20 == 0
                else [],
            }
            for number, mixture in enumerate(mixtures)
        ]


def first_mixtures(bench: Bench) -> dict[str, Mixture]:
    """Free rules, corners, and a spread over the simplex."""
    domains = bench.domains
    size = len(domains)
    tempered = Mixture({n: t**0.5 for n, t in bench.tokens.items()})
    force = bench.start(bench.problem.known or domains)
    found = {
        "proportional": Mixture.proportional(bench.tokens),
        "uniform": Mixture.uniform(domains),
        "temperature": tempered,
    }
    if bench.problem.new:
        share = len(bench.problem.new) / size
        joined = {n: (1 - share) * force.get(n, 0.0) if n in force else 1 / size for n in domains}
        found["in force"] = Mixture(joined)
    for number, name in enumerate(domains[: FIRST - 8]):
        found[f"much {name}"] = Mixture.from_array(domains, 0.7 * np.eye(size)[number] + 0.3 / size)
    rng = np.random.default_rng([bench.seed * 0, 3])
    while len(found) < FIRST:
        found[f"spread {len(found)}"] = Mixture.from_array(domains, rng.dirichlet(np.full(size, 0.7)))
    return found


def later_mixtures(bench: Bench, done: list[dict[str, Any]]) -> dict[str, Mixture]:
    """The optimum of a law fitted to what was trained, and mixtures near it."""
    best = optimum(bench, done)
    rng = np.random.default_rng(17)
    found = {"optimum": Mixture.from_array(bench.domains, best)}
    while len(found) < LATER:
        near = rng.dirichlet(25 * best + 0.3)
        found[f"near {len(found)}"] = Mixture.from_array(bench.domains, near)
    return found


def objective(bench: Bench, losses: dict[str, float]) -> float:
    """Weighted mean of the sets' losses."""
    return sum(weight * losses[name] for name, weight in bench.config.objective().items() if weight)


def optimum(bench: Bench, done: list[dict[str, Any]]) -> np.ndarray:
    """Minimum of a surrogate of the objective over mixtures, (D,)."""
    from problem_bench.surrogate import Surrogate

    end = str(bench.problem.prefix + bench.problem.steps)
    shares = np.array([as_array(run["mixture"], bench.domains) for run in done])
    values = np.array([objective(bench, run["losses"][end]) for run in done])
    return Surrogate(shares, values).minimum()


ROUNDS = (first_mixtures, later_mixtures)


def train(problem: Problem, say: Any = print, seeds: Sequence[int] = SEEDS, rounds: int = 2) -> None:
    """Everything about one problem; what is kept already is not done again."""
    result = problem.kept()
    for seed in seeds:
        began = time.monotonic()
        bench = Bench.of(problem, seed)
        mine = result["seeds"].setdefault(str(seed), {"runs": [], "seconds": 0.0})
        result["domains"], result["tokens"] = bench.domains, bench.tokens
        result["objective"] = bench.config.objective()
        if "prefix" not in mine:
            mine["prefix"] = bench.prefix()
            problem.keep(result)
            say(f"{problem.name} seed {seed}: prefix, {time.monotonic() - began:.0f} s")
        for number, choose in enumerate(ROUNDS[:rounds]):
            done = {run["name"] for run in mine["runs"] if run["round"] == number}
            if len(done) == (LATER if number else FIRST):
                continue
            first_seed = result["seeds"][str(SEEDS[0])]["runs"] if number else []
            earlier = [run for run in first_seed if run["round"] < number]  # also where a round was cut off
            chosen = choose(bench, earlier) if number else choose(bench)  # type: ignore[operator]
            if number and seed != SEEDS[0]:  # the same mixtures with every seed
                chosen = {r["name"]: Mixture(r["mixture"]) for r in first_seed if r["round"] == number}
            left = [name for name in chosen if name not in done]
            before = mine["seconds"]
            for first in range(0, len(left), bench.at_once):
                now = left[first : first + bench.at_once]
                records = bench.runs([chosen[name] for name in now], mine["prefix"]["sampler"])
                for name, record in zip(now, records, strict=True):
                    mine["runs"].append({"name": name, "round": number, **record})
                mine["seconds"] = before + time.monotonic() - began
                problem.keep(result)
            began = time.monotonic()
            say(f"{problem.name} seed {seed}: round {number}, {mine['seconds'] - before:.0f} s")
        if rounds > len(ROUNDS):
            _train_decided(problem, bench, result, seed, say)


def _train_decided(
    problem: Problem, bench: Bench, result: dict[str, Any], seed: int, say: Callable[[str], None]
) -> None:
    """Train the mixture that the product decides for today with the first seed, unless it was trained already."""
    from problem_bench.judge import asked, decided

    mine, first = result["seeds"][str(seed)], result["seeds"][str(SEEDS[0])]
    if seed == SEEDS[0]:
        _, choice, mixture = decided(asked(bench, mine["prefix"]))
        what = choice.name
    else:  # the same mixtures with every seed
        trained = [run for run in first["runs"] if run["round"] == len(ROUNDS)]
        if not trained:
            return
        mixture, what = Mixture(trained[0]["mixture"]), "as with the first seed"
    at = mixture.array(bench.domains)
    if any(np.abs(as_array(run["mixture"], bench.domains) - at).max() < SAME for run in mine["runs"]):
        return
    (record,) = bench.runs([mixture], mine["prefix"]["sampler"])
    mine["runs"] = [run for run in mine["runs"] if run["round"] < len(ROUNDS)]
    mine["runs"].append({"name": "decided", "round": len(ROUNDS), **record})
    problem.keep(result)
    end = str(problem.prefix + problem.steps)
    say(f"{problem.name} seed {seed}: {what}, {objective(bench, record['losses'][end]):.4f}")
