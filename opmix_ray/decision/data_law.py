"""The law of a decision: what counting words says each mixture teaches, corrected by what the probes say beyond that.

Counting (`counts/ngrams.py`) predicts how far apart trained mixtures end, set by set. The candidates, sums of probes,
say how the model itself answers: what they show that counting does not explain is linear in the shares, grows with the
stage as slopes do, and is believed in part (`BEYOND`). docs/decisions.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opmix_ray.counts.ceilings import DataResponse
from opmix_ray.counts.ngrams import Counts, DataLeft
from opmix_ray.decision.old_part import OldPart
from opmix_ray.laws.base import Response, Table, objective_weights
from opmix_ray.laws.fitted import FittedLaw, score
from opmix_ray.mixture import Mixture

NAME = "data"
TRUST = 0.9  # nats between trained models for a nat between n-gram models: .75 to 1.25 in the problems
DOUBT = 0.25  # standard deviation of that, over the problems
BEYOND = 0.1  # part of what probes show beyond counting that is believed
HALF = 60.0  # steps of a probe of which half of that is believed: few steps show mostly their batches
UNKNOWN = 2.0  # all of it where probes move a set so many times further than counting says the stage will
ALONE = 0.5  # the same for sets that cannot be counted
GROWTH = 1.4  # slopes of trained models over those of probes, times log(1 + steps / 2) of both
SETTLING = 2.0  # optimiser steps, in the two logarithms
PENALTY = 0.05  # of the ridge, in rows


@dataclass(frozen=True)
class Known:
    """What is known about a stage's data.

    Args:
        counts: by evaluation set.
        data: what the stage reads, over the domains.
    """

    counts: dict[str, Counts]
    data: DataLeft


def fit_data_law(
    ratios: np.ndarray,
    losses: np.ndarray,
    known: Known,
    *,
    current: Mixture,
    sets: Sequence[str],
    objective: dict[str, float],
    old: OldPart | None,
    steps: float,
    probe_steps: float | None,
    seed: int = 0,
) -> FittedLaw:
    """The law over domains, or over `old` and the new ones.

    Args:
        ratios: (N, K) shares of the candidates; N may be 0, then counting speaks alone.
        losses: (N, M) of the candidates.
        known: counts and data.
        current: mixture in force, over all D domains.
        sets: M evaluation sets.
        objective: weight per set.
        old: the domains that are searched as one; None: every domain has a share of its own.
        steps: optimiser steps of the stage that are left.
        probe_steps: of the probes, in steps of the main run; None: not known.
    """
    domains = list(current.domains) if old is None else old.names
    centre = current.array() if old is None else old.reduce(current.array())[0]
    expand = None if old is None else _spread(old, current.domains)
    growth = heard = 1.0
    if probe_steps:
        heard = probe_steps / (probe_steps + HALF)
        growth = GROWTH * np.log1p(steps / SETTLING) / np.log1p(probe_steps / SETTLING)
    weights = objective_weights(list(sets), objective)
    bare = [
        _plain(
            known.counts.get(name), known.data, centre, expand, float(losses[0, m]) if len(losses) else None
        )
        for m, name in enumerate(sets)
    ]
    counted = np.column_stack([r.predict(ratios) for r in bare]) if len(ratios) else np.zeros((0, len(sets)))
    told = held_out = np.zeros((0, len(sets)))
    if len(ratios) > 2:
        away, expected = losses - losses.mean(axis=0), counted - counted.mean(axis=0)
        scale = weights / np.maximum(np.square(expected).sum(axis=0), 1e-12) ** 0.5
        top = float((scale * expected * away).sum())
        size = max(0.0, top / max(1e-12, float((scale * expected * expected).sum())))
        hat, solve = _ridge(ratios - ratios.mean(axis=0))
        left = away - size * expected
        inside, out = np.zeros_like(left), np.zeros_like(left)
        leverage = np.minimum(np.diag(hat) + 1 / len(ratios), 0.95)
        parts = np.where(away.std(axis=0) > UNKNOWN * expected.std(axis=0), 1.0, heard) * BEYOND
        for m, response in enumerate(bare):
            beta = solve @ left[:, m]
            inside[:, m] = hat @ left[:, m]
            out[:, m] = left[:, m] - (left[:, m] - inside[:, m]) / (1 - leverage)
            noise = float(np.mean(((left - out)[:, m]) ** 2))
            believed = (ALONE if response.counts is None else parts[m]) * growth
            response.beyond = believed * beta
            response.covariance = believed**2 * noise * solve @ solve.T
        told, held_out = (losses.mean(axis=0) + size * expected + rest for rest in (inside, out))
    return _law(domains, sets, weights, [*bare], ratios, losses, told, held_out, seed)


def _plain(
    counts: Counts | None, data: DataLeft, centre: np.ndarray, expand: np.ndarray | None, now: float | None
) -> DataResponse:
    """The response that counting alone gives; a model whose loss is already below the n-gram model's moves less."""
    none = np.zeros_like(centre)
    response = DataResponse(0.0, centre, 1.0, none, 0.0, np.outer(none, none), counts, data, expand)
    here = float(response.counted(centre[None])[0])
    trust = TRUST * (min(1.0, now / here) if now is not None and here > 0 else 1.0)
    response.level = here if now is None else min(now, here) if counts is not None else now
    response.trust, response.doubt = trust, DOUBT * trust
    return response


def _ridge(away: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hat matrix (N, N) and solution matrix (K, N) of a ridge on centred shares."""
    solve = np.linalg.solve(away.T @ away + PENALTY * np.eye(away.shape[1]), away.T)
    return away @ solve, solve


def _spread(old: OldPart, domains: Sequence[str]) -> np.ndarray:
    """(K, D) share of every domain in `old` and in the new ones."""
    rows = [[old.inside.get(name, 0.0) for name in domains]]
    rows += [[1.0 if name == new else 0.0 for name in domains] for new in old.new]
    return np.array(rows)


def _law(
    domains: Sequence[str], sets: Sequence[str], weights: np.ndarray, responses: list[Response],
    ratios: np.ndarray, losses: np.ndarray, told: np.ndarray, held_out: np.ndarray, seed: int,
) -> FittedLaw:  # fmt: skip
    quality, table = {}, None
    if len(told):
        quality = {name: score(losses[:, m], told[:, m], held_out[:, m]) for m, name in enumerate(sets)}
        quality["objective"] = score(losses @ weights, told @ weights, held_out @ weights)
        table = Table(
            ratios, losses, tuple(domains), tuple(sets), np.ones_like(losses), (None,) * len(sets), seed
        )
    return FittedLaw(
        NAME, domains, sets, weights, responses, quality=quality, table=table,
        in_sample=told if len(told) else None,
    )  # fmt: skip
