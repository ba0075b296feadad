"""Replay the product's decision on problems whose truth is kept: what it chose, and how much of what could be had.

The decision is the one that costs no FLOPs: `decision.rule.fit_decision` without a candidate, on counts of the
problem's data. What its mixture came to is measured where `train --rounds 3` trained it; else it is read off a
Gaussian process on all trained mixtures, and as doubtful as the column `doubt` says (root mean square error, left out
one by one).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from opmix_ray.config import ProposalConfig
from opmix_ray.counts.ngrams import DataLeft, smoothed
from opmix_ray.decision.budget import MOST_ASKED
from opmix_ray.decision.choice import Choice, choose
from opmix_ray.decision.data_law import Known
from opmix_ray.decision.rule import DecisionInputs, fit_decision
from opmix_ray.decision.task import counts_for, texts_for
from opmix_ray.laws.fitted import FittedLaw
from opmix_ray.mixture import Mixture
from opmix_ray.trials.space import Components
from problem_bench.problem import Problem, as_array
from problem_bench.surrogate import Surrogate
from problem_bench.truth import SAME, Bench, objective

FREE = ("proportional", "uniform", "temperature", "in force")


@dataclass(frozen=True)
class Verdict:
    """What a decision came to on one problem; losses in nats per token.

    Args:
        free: objective of the best free rule that was trained, and its name.
        best: of the best mixture that was trained.
        got: of the decision's mixture.
        doubt: root mean square error of what `got` is read from; 0: it was trained.
        spearman: of the law and the trained mixtures.
        promised: gain over the mixture in force that the law expects.
        chosen: name of the choice.
        mixture: share by domain.
        smooth: gain over the best free rule, in per cent of the loss, where both are read off the Gaussian process: the
            best of several single runs is also the luckiest.
        after: the problem was made when every constant had been chosen.
    """

    free: tuple[str, float]
    best: float
    got: float
    doubt: float
    spearman: float
    promised: float
    chosen: str
    mixture: dict[str, float]
    smooth: float
    after: bool

    @property
    def room(self) -> float:
        """What could be had, in per cent of the loss."""
        return 100 * (self.free[1] - self.best) / self.free[1]

    @property
    def gain(self) -> float:
        """What was had, in per cent of the loss."""
        return 100 * (self.free[1] - self.got) / self.free[1]

    @property
    def captured(self) -> float:
        """Share of what could be had."""
        return (self.free[1] - self.got) / (self.free[1] - self.best)


def judge(problem: Problem, again: int = 0) -> Verdict:
    """Decide, `again` times more from what was decided, and read off what that would have come to."""
    kept = problem.kept()
    first = next(iter(kept["seeds"].values()))
    bench = Bench.of(problem, int(next(iter(kept["seeds"]))))
    domains, end = bench.domains, str(problem.prefix + problem.steps)
    every = [{run["name"]: run for run in seed["runs"]} for seed in kept["seeds"].values()]
    whole = [runs for runs in every if runs.keys() >= every[0].keys()]  # levels differ between seeds
    names = list(every[0])
    shares = [as_array(run["mixture"], domains) for run in first["runs"]]
    values = [np.mean([objective(bench, runs[name]["losses"][end]) for runs in whole]) for name in names]
    trained, losses = np.array(shares), np.array(values)
    question = asked(bench, first["prefix"])
    law, choice, mixture = decided(question)
    for _ in range(again):
        mixture = decided(replace(question, **in_force(mixture, 1 - bench.config.probe.new_share)))[2]
    at = mixture.array(domains)
    near = np.abs(trained - at).max(axis=1)
    surrogate = Surrogate(trained, losses)
    if near.min() < SAME:
        got, doubt = float(losses[near.argmin()]), 0.0
    else:
        got, doubt = float(surrogate(at)[0]), float(np.sqrt(np.mean((surrogate.left_out() - losses) ** 2)))
    free = {name: losses[names.index(name)] for name in FREE if name in names}
    best_free = min(free, key=lambda name: free[name])
    rules = np.array([trained[names.index(name)] for name in free])
    least = float(surrogate(rules).min())
    return Verdict(
        (best_free, float(free[best_free])), float(losses.min()), got, doubt,
        float(spearmanr(law.objective(trained), losses).statistic), choice.gain, choice.name, mixture.shares,
        100 * (least - float(surrogate(at)[0])) / least, problem.after,
    )  # fmt: skip


def in_force(mixture: Mixture, floor: float) -> dict[str, Any]:
    """What a decision's question says of the mixture in force; no share falls below so large a part of its own."""
    names = mixture.domains
    return {
        "components": Components(
            names, names, (1 - floor) * np.eye(len(names)) + floor * mixture.array()[None]
        ),
        "current": mixture,
        "lower": {name: floor * mixture[name] for name in names},
    }


def decided(question: DecisionInputs) -> tuple[FittedLaw, Choice, Mixture]:
    """The product's law, what it chooses, and the mixture."""
    found = fit_decision([], question)
    assert found.law is not None
    assert found.mixture is not None
    free = {name: mixture for name, mixture in question.free.items() if mixture != question.current}
    others = {"proposal": found.mixture, **free}
    choice = choose(found.law, others, question.current)
    return found.law, choice, others.get(choice.name, question.current)


def asked(bench: Bench, prefix: dict[str, Any]) -> DecisionInputs:
    """What the decision of a problem is about, as `decision.make` asks it."""
    problem, config, prepared = bench.problem, bench.config, bench.prepared
    before = Mixture({name: prefix["mixture"].get(name, 0.0) for name in bench.domains})
    share = len(problem.new) / len(bench.domains)
    joined = {
        n: 1 / len(bench.domains) if n in problem.new else (1 - share) * before[n] for n in bench.domains
    }
    current = Mixture(joined) if problem.new else before
    length = prepared.seq_len
    data = DataLeft(
        float(problem.steps * config.train.batch_size * length),
        np.array([prefix["sampler"]["consumed"].get(name, 0) * float(length) for name in bench.domains]),
        np.array([bench.tokens[name] for name in bench.domains]),
    )
    weights = {name: weight for name, weight in config.objective().items() if weight}
    held = texts_for(
        prepared, weights, reported=config.evaluation.sequences, searched=config.search.sequences,
        most=MOST_ASKED if "told" in prefix else None,
    )  # fmt: skip
    told = {name: np.array(nats) for name, nats in prefix.get("told", {}).items()}
    counts = counts_for(prepared, held, current, data, told or None)
    now = prefix["losses"][str(problem.prefix)]
    if not problem.pretrained:
        counts = smoothed(counts, now, current.array(bench.domains), data, problem.new)
    names = tuple(bench.domains)
    free = {
        "uniform": Mixture.uniform(names),
        "proportional": Mixture.proportional(bench.tokens),
        "temperature": Mixture({name: count**0.5 for name, count in bench.tokens.items()}),
    }
    return DecisionInputs(
        **in_force(current, 1 - config.probe.new_share),
        sets=tuple(weights), objective=weights, prior=current, upper=dict.fromkeys(names, 1.0),
        settings=ProposalConfig(), seed=0, steps=float(problem.steps), known=Known(counts, data),
        free={"current": current, **free},
    )  # fmt: skip


def table(verdicts: dict[str, Verdict]) -> str:
    """All problems, one a line."""
    lines = [
        f"{'problem':10s} {'best free rule':>22s} {'best':>7s} {'decision':>8s} {'doubt':>6s} {'room %':>7s} "
        f"{'gain %':>7s} {'smooth %':>8s} {'captured':>8s} {'Spearman':>8s} {'promised':>8s}  chosen"
    ]
    for name, v in verdicts.items():
        share = f"{v.captured:8.2f}" if v.room >= 0.5 else "       -"
        lines.append(
            f"{name:10s} {v.free[0]:>14s} {v.free[1]:7.4f} {v.best:7.4f} {v.got:8.4f} {v.doubt:6.3f} {v.room:7.2f} "
            f"{v.gain:7.2f} {v.smooth:8.2f} {share} {v.spearman:8.3f} {v.promised:8.4f}  {v.chosen}"
        )
    for what, after in (("", False), ("the same on problems made afterwards", True)):
        room = [v.captured for v in verdicts.values() if v.room >= 0.5 and v.after == after]
        if room:
            what = what or "captured where there is at least .5 % of room"
            lines.append(f"{what}: median {np.median(room):.2f}, least {min(room):.2f}")
    return "\n".join(lines)
