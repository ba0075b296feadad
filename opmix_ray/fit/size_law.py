"""A law for one model size from runs of several: few large runs correct what many small ones say.

    law = fit_sizes(ratios, metrics, scales, target, domains=..., metric_names=...)

The law of the size with most runs is corrected by those of the next size toward the target, and so on. Of a mixture
`p` a metric is `a + (c + b) f(p) + w . log(p + eps)`, with the law `f` of the size before (Kennedy and O'Hagan 2000).
The slope `c` is common to the metrics; how much a metric's own slope `b` and the correction `w` may differ from 0 comes
from the evidence of all metrics together. Few rows leave both at 0: the law of the small runs with another level. A law
of the larger runs alone stands beside where they are many, as predictions of left-out runs weigh the two.

A target without runs is read from the trends of three sizes or more: levels follow `E + A / size^alpha`, slopes a power
of the size (as in Hoffmann et al. 2022; tokens likewise).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import norm, t

from opmix_ray.errors import UserError
from opmix_ray.fit.sizes import Scale, Scales
from opmix_ray.fit.sweep import Sweep
from opmix_ray.laws import fit_law
from opmix_ray.laws.base import Response, Table, objective_weights
from opmix_ray.laws.combined import MANY, Corrected, Stack, stack_weights
from opmix_ray.laws.fit import LEAST_ROWS, calibrate, check_table
from opmix_ray.laws.fitted import FittedLaw, make_folds, score
from opmix_ray.numerics import one_thread
from opmix_ray.numerics.ridge import Corrections, fit_corrections

EPS = 0.01  # pseudo-count of the correction
ALONE = 2  # rows for each of D + 2 parameters from which a law of the larger runs alone stands beside
POWERS = np.geomspace(0.03, 1.0, 30)  # of levels in the size
STEEPEST = 3.0  # factor on slopes that a trend may give
DOUBT = 0.25  # error of a level over what a trend adds to it


@dataclass(frozen=True)
class _Step:
    """How a size's runs correct the law of the size before: units (M,), centre (D,) and length of the logs, the fit."""

    unit: np.ndarray
    centre: np.ndarray
    length: float
    fit: Corrections

    @classmethod
    def of(
        cls,
        before: np.ndarray,
        table: Table,
        unit: np.ndarray,
        like: _Step | None = None,
        kept: np.ndarray | None = None,
    ) -> _Step:
        """Fitted to rows of which the law before says `before` (N, M) unseen.

        Args:
            like: keep what this one chose.
            kept: (N,) 0 for rows that do not count.
        """
        logs = np.log(table.ratios + EPS)
        centre = logs.mean(axis=0) if like is None else like.centre
        length = float(np.sqrt(((logs - centre) ** 2).sum(axis=1).mean())) if like is None else like.length
        length = max(length, 1e-9)
        weights = table.weights if kept is None else table.weights * kept[:, None]
        fit = fit_corrections(
            before / unit, (logs - centre) / length, table.metrics / unit, weights, like.fit if like else None
        )
        return cls(unit, centre, length, fit)

    def said(self, before: np.ndarray, ratios: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Metrics and their standard errors, (n, M) each, for new runs."""
        x, z = before / self.unit, (np.log(ratios + EPS) - self.centre) / self.length
        return self.unit * self.fit.predict(x, z), self.unit * self.fit.std(x, z)

    def response(self, metric: int, part: Response) -> Corrected:
        """One metric's correction of a response."""
        unit, fit = float(self.unit[metric]), self.fit
        scale = np.concatenate([[1 / unit], np.full(len(self.centre), 1 / self.length)])
        mean = fit.mean[metric] / scale + np.concatenate([[0.0], self.centre])
        slopes, covariance = (
            unit * fit.slopes[metric] * scale,
            fit.covariance[metric] * np.outer(scale, scale),
        )
        intercept = unit * float(fit.level[metric]) - float(mean @ slopes)
        sigma = unit * float(fit.sigma[metric])
        return Corrected(
            part, intercept, float(slopes[0]), slopes[1:], EPS, mean, unit**2 * covariance, sigma
        )


@dataclass(frozen=True)
class _Stage:
    """The law of one size.

    Args:
        rows: of the table, of this size.
        alone: fitted to these; None: there are too few.
        step: correction of the stage before; None: there is none.
        share: of the corrected stage before; the rest is the law alone's.
        offset: (n, M) what the stage before says of the rows unseen, less what it says.
        held_out, std, in_sample: (n, M) predictions out of fold, their standard errors, and predictions.
    """

    rows: np.ndarray
    alone: FittedLaw | None
    step: _Step | None
    share: float
    offset: np.ndarray
    held_out: np.ndarray
    std: np.ndarray
    in_sample: np.ndarray

    def responses(
        self, alone: Sequence[Response], before: Sequence[Response], step: _Step | None
    ) -> list[Response]:
        """One per metric, from those of the law alone and of the stage before."""
        if step is None or not self.share:
            return list(alone)
        found: list[Response] = [step.response(m, part) for m, part in enumerate(before)]
        if self.share == 1:
            return found
        return [Stack(pair, [self.share, 1 - self.share]) for pair in zip(found, alone, strict=True)]

    def again(self, table: Table, before: Sequence[Response]) -> list[Response]:
        """The same choices on other values or weights of the rows."""
        part = table.rows(self.rows)
        alone: Sequence[Response] = []
        if self.alone is not None and self.share < 1:
            assert self.alone.refit is not None
            alone = self.alone.refit(part)[0]
        step = None
        if self.step is not None and self.share:
            unseen = _columns(before, part.ratios) + self.offset
            step = _Step.of(unseen, part, self.step.unit, self.step)
        return self.responses(alone, before, step)


def _columns(responses: Sequence[Response], ratios: np.ndarray) -> np.ndarray:
    return np.column_stack([response.predict(ratios) for response in responses])


def _first(rows: np.ndarray, law: FittedLaw) -> _Stage:
    assert law.table is not None
    assert law.held_out is not None
    assert law.in_sample is not None
    std = np.column_stack([response.std(law.table.ratios) for response in law.responses])
    held_out = law.held_out[:, :-1]
    return _Stage(rows, law, None, 0.0, np.zeros(std.shape), held_out, std, law.in_sample)


def _next(
    table: Table,
    rows: np.ndarray,
    alone: FittedLaw | None,
    unit: np.ndarray,
    last: _Stage,
    before: Sequence[Response],
) -> _Stage:
    """The stage that corrects the one before by rows of its size."""
    part = table.rows(rows)
    said = _columns(before, part.ratios)
    unseen = said + _unseen(part.ratios, table.ratios[last.rows], last)
    step = _Step.of(unseen, part, unit)
    held_out, std = np.full(part.metrics.shape, np.nan), np.full(part.metrics.shape, np.nan)
    folds = make_folds(part.ratios, table.seed)
    for held in folds if len(folds) > 1 else []:
        kept = ~np.isin(np.arange(len(rows)), held)
        fold = _Step.of(unseen, part, unit, step, kept)
        held_out[held], std[held] = fold.said(unseen[held], part.ratios[held])
    share = 1.0
    if alone is not None:
        assert alone.held_out is not None
        other = alone.held_out[:, :-1]
        share = _share(part.metrics, held_out, other)
        held_out = share * np.nan_to_num(held_out) + (1 - share) * other
    stage = _Stage(rows, alone, step, share, unseen - said, held_out, std, held_out)
    responses = stage.responses([] if alone is None else alone.responses, before, step)
    return replace(stage, in_sample=_columns(responses, part.ratios))


def _unseen(ratios: np.ndarray, seen: np.ndarray, stage: _Stage) -> np.ndarray:
    """What a stage says out of fold less what it says, (n, M), of those mixtures that it was fitted to."""
    found = np.zeros((len(ratios), stage.held_out.shape[1]))
    for place, row in enumerate(ratios):
        same = np.abs(seen - row).max(axis=1) < 1e-6
        if same.any():
            found[place] = np.nan_to_num((stage.held_out - stage.in_sample)[same].mean(axis=0))
    return found


def _share(measured: np.ndarray, corrected: np.ndarray, alone: np.ndarray) -> float:
    """Share of the corrected law beside one of the larger runs alone, by predictions out of fold.

    All, unless the two together err less by more than a standard error. Laws of many metrics are blends of few groups
    each, of which only one can be kept.
    """
    level, unit = np.nanmean(measured, axis=0), np.maximum(np.nanstd(measured, axis=0), 1e-12)
    wanted, one, other = ((each - level) / unit for each in (measured, corrected, alone))
    share = float(
        stack_weights(np.column_stack([one.ravel(), other.ravel()]), wanted.ravel(), len(measured))[0]
    )
    share = float(round(share)) if measured.shape[1] > MANY else share
    better = np.nanmean((one - wanted) ** 2 - (share * one + (1 - share) * other - wanted) ** 2, axis=1)
    return share if better.mean() > better.std(ddof=1) / np.sqrt(len(better)) else 1.0


def for_target(sweep: Sweep, target: Scale) -> Sweep:
    """The part of a sweep that can be fitted for a size, with notes on it.

    Raises:
        UserError: see `Scales.order`; or no metric is left.
    """
    assert sweep.scales is not None
    groups, values = sweep.scales.order(target), np.isfinite(sweep.metrics)
    enough = values[groups[0]].sum(axis=0) >= LEAST_ROWS
    enough &= np.array([values[rows].any(axis=0) for rows in groups[1:]]).all(axis=0)
    if not enough.any():
        raise UserError(
            "no metric was measured at every size", key=target.key, value=target.words(),
            remedy="leave out the rows of sizes without it",
        )  # fmt: skip
    used = np.isin(np.arange(len(sweep.runs)), np.concatenate(groups)) & values[:, enough].any(axis=1)
    names = np.array(sweep.metric_names, dtype=object)
    notes = [f"metric `{name}` was not measured at every size, and was not used" for name in names[~enough]]
    return replace(
        sweep, runs=[run for run, kept in zip(sweep.runs, used, strict=True) if kept], ratios=sweep.ratios[used],
        metrics=sweep.metrics[np.ix_(used, enough)], metric_names=names[enough].tolist(),
        notes=[*sweep.notes, *sweep.scales.notes(target), *notes], scales=sweep.scales.rows(used),
    )  # fmt: skip


@one_thread()
def fit_sizes(
    ratios: np.ndarray,
    metrics: np.ndarray,
    scales: Scales,
    target: Scale,
    *,
    domains: Sequence[str],
    metric_names: Sequence[str],
    law: str = "auto",
    objective: Mapping[str, float] | None = None,
    seed: int = 0,
) -> FittedLaw:
    """Fit a law for one size (and number of tokens) to runs of several.

    Args:
        ratios, metrics, domains, metric_names, law, objective, seed: as of `fit_law`.
        scales: size and tokens of every run.
        target: what the law is for; where no run is of it, `scales` must hold three sizes.

    Raises:
        UserError: see `fit_law` and `Scales.order`.
    """
    table = check_table(ratios, metrics, domains, metric_names, None, seed)
    weights = objective_weights(metric_names, None if objective is None else dict(objective))
    named = dict(zip(metric_names, weights.tolist(), strict=True))
    stages: list[_Stage] = []
    chain: list[list[Response]] = []
    groups = scales.order(target)
    for rows in groups:
        part, alone = table.rows(rows), None
        enough = not stages or len(rows) >= ALONE * (len(domains) + 2)
        if enough and (np.isfinite(part.metrics).sum(axis=0) >= LEAST_ROWS).all():
            alone = fit_law(
                part.ratios, part.metrics, domains=domains, metric_names=metric_names, law=law, objective=named,
                seed=seed,
            )  # fmt: skip
        if not stages:
            assert alone is not None, "the sweep has left out metrics that the first size lacks"
            stages.append(_first(rows, alone))
            chain.append(alone.responses)
            unit = np.maximum(np.nanstd(part.metrics, axis=0), 1e-9)
        else:
            stages.append(_next(table, rows, alone, unit, stages[-1], chain[-1]))
            stage = stages[-1]
            chain.append(stage.responses([] if alone is None else alone.responses, chain[-1], stage.step))
    points = np.array([scales.of(rows).log() for rows in groups])
    there = scales.is_there(target)

    def read(found: Sequence[Sequence[Response]], mixtures: np.ndarray) -> list[Response]:
        return list(found[-1]) if there else _trend(mixtures, found, points, target.log())

    def refit(again: Table) -> tuple[list[Response], Response | None]:
        found: list[list[Response]] = []
        for stage in stages:
            found.append(stage.again(again, found[-1] if found else []))
        return read(found, again.ratios), None

    held_out, in_sample = (
        np.full((len(table), len(metric_names) + 1), np.nan),
        np.full(table.metrics.shape, np.nan),
    )
    for stage in stages:
        held_out[stage.rows, :-1], in_sample[stage.rows] = stage.held_out, stage.in_sample
    used, last = weights > 0, stages[-1]
    held_out[:, -1] = held_out[:, :-1][:, used] @ weights[used]
    measured = np.column_stack([table.metrics[last.rows], table.metrics[last.rows][:, used] @ weights[used]])
    fitted = np.column_stack([last.in_sample, last.in_sample[:, used] @ weights[used]])
    quality = {
        name: score(measured[:, m], fitted[:, m], held_out[last.rows, m])
        for m, name in enumerate([*metric_names, "objective"])
    }
    std_scale = calibrate(
        measured[:, -1] - held_out[last.rows, -1], np.sqrt(last.std[:, used] ** 2 @ weights[used] ** 2)
    )
    few = max(1, int(np.isfinite(held_out[last.rows, -1]).sum()) - 1)
    std_scale *= float(t.ppf(0.95, few) / norm.ppf(0.95))  # few rows know their own error badly
    details = {"target": target.to_dict(), "sizes": [_told(scales, stage) for stage in stages]}
    return FittedLaw(
        law, domains, metric_names, weights, read(chain, table.ratios), None, quality, std_scale, details, table, refit,
        held_out, in_sample,
    )  # fmt: skip


def _told(scales: Scales, stage: _Stage) -> dict[str, Any]:
    found: dict[str, Any] = {**scales.of(stage.rows).to_dict(), "rows": len(stage.rows)}
    if stage.step is not None:
        own, other, noise = np.exp(stage.step.fit.theta).tolist()
        found |= {"slope": stage.step.fit.common, "own_slopes": own, "correction": other, "noise": noise,
                  "share": stage.share}  # fmt: skip
    return found


def _trend(
    ratios: np.ndarray, chain: Sequence[Sequence[Response]], points: np.ndarray, at: np.ndarray
) -> list[Response]:
    """Responses for a size without runs: the last stage's, with level and slope from the trends of all K stages.

    Args:
        ratios: mixtures to compare the stages on.
        points, at: (K, A) and (A,) logs of size and of tokens.
    """
    said = np.array([_columns(responses, ratios) for responses in chain])
    levels, away = said.mean(axis=1), said - said.mean(axis=1, keepdims=True)
    slopes = (away * away[-1]).sum(axis=1) / np.maximum((away[-1] ** 2).sum(axis=0), 1e-300)
    moves, step = points - points[-1], at - points[-1]
    logs = np.log(np.clip(slopes, 1 / STEEPEST**2, STEEPEST**2))
    powers = np.linalg.lstsq(moves, logs, rcond=1e-8)[0]
    common = powers.mean(axis=1, keepdims=True)
    factor = np.clip(np.exp(step @ (powers + common) / 2), 1 / STEEPEST, STEEPEST)
    doubt = factor * np.sqrt(np.mean((step @ (powers - common)) ** 2))
    level = _levels(levels, points, at)
    blank, found = np.zeros(ratios.shape[1]), list[Response]()
    for m, part in enumerate(chain[-1]):
        slope, rise = float(factor[m]), float(level[m] - levels[-1, m])
        sigma = float(np.hypot(slope * np.median(part.std(ratios)), DOUBT * rise))
        mean, variance = np.append(levels[-1, m], blank), np.diag(np.append(doubt[m] ** 2, blank))
        intercept = float(level[m]) - slope * float(levels[-1, m])
        found.append(Corrected(part, intercept, slope, blank, EPS, mean, variance, sigma))
    return found


def _levels(levels: np.ndarray, points: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Levels (M,) at a size, from those (K, M) at others: `E + sum A / size^alpha`, one alpha for all metrics."""
    unit = np.maximum(levels.std(axis=0), 1e-12)
    best: tuple[float, np.ndarray] = (np.inf, levels[-1])
    for power in POWERS:
        features = np.column_stack([np.ones(len(points)), np.exp(-power * (points - points[-1]))])
        found = np.linalg.lstsq(features, levels, rcond=1e-8)[0]
        error = float((((features @ found - levels) / unit) ** 2).sum())
        if error < best[0] - 1e-12:
            best = error, np.concatenate([[1.0], np.exp(-power * (at - points[-1]))]) @ found
    return best[1]
