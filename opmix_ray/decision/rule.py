"""From scored candidates to a verified decision: law, proposal, paired bootstrap, keep or change."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from opmix_ray.config import ProposalConfig
from opmix_ray.config.objective import UNITS, Limit, Objective
from opmix_ray.config.run import FOR_TRAINED
from opmix_ray.counts.ceilings import Ceiling, ceilings_of, in_words, levelled, missed, told
from opmix_ray.decision.choice import aimed, choose, kl_in_unit
from opmix_ray.decision.data_law import Known, fit_data_law
from opmix_ray.decision.old_part import OLD, OldPart, slopes_of
from opmix_ray.decision.propose import Proposal, propose
from opmix_ray.laws import Extrapolation, FittedLaw, fit_law
from opmix_ray.laws.extrapolate import stage_growth
from opmix_ray.mixture import Mixture
from opmix_ray.trials.rows import TrialRow, usable_losses
from opmix_ray.trials.space import Components

LEAST_ROWS = 4  # usable candidates below which no law is fitted

# Level of the interval that must exclude 0, and resamples of the paired bootstrap that gives it: with 2,000 each end of
# a 95 % interval has a standard error of 1.5 % of its width.
CONFIDENCE, RESAMPLES = 0.95, 2000

# How a law fitted on added-up probes is read for models that are trained for the rest of the stage. Measured on 25 to
# 29 mixtures really trained from each of 12 prefixes (`python benchmarks/fidelity_runs.py`, docs/decisions.md):
# - optimiser steps of data that `eps` is worth in `log(share + eps)`; 30 sequences in the middle, at 150 and 500 steps;
EPS_STEPS = 2.0
# - how much steeper trained models are than added-up probes, times `stage_growth`; 1.29 to 1.50 in 12 settings;
SLOPE_GROWTH = 1.4
# - to what power the sets' slopes may differ; the log of the true slope follows the log of the probes' with .36 to .46;
SLOPE_TRUST = 0.4
# - what is kept of one domain's effect on another's set, which correlates .00 with training over 300 pairs.
TRANSFER_TRUST = 0.25


@dataclass(frozen=True)
class DecisionInputs:
    """What a decision is about.

    Args:
        components: of the search.
        sets: M evaluation sets.
        objective: what is minimised; weights by set mean the weighted mean loss.
        current: mixture in force.
        prior: mixture that the KL term holds on to.
        lower, upper: least and greatest share of each domain, bounds and repetition caps together.
        settings: law, KL weight, confidence.
        seed: of the bootstrap.
        old: the domains that are searched as one; None: every domain has a share of its own.
        steps: optimiser steps that the answer is for; None: the law is not read for trained models.
        probe_steps: optimiser steps of the probes, in batches of the main run; None: slopes are read as fitted.
        known: what counting says of the stage's data; None: the law is fitted on candidates alone.
        free: mixtures that cost nothing to find, by name; the best of them is the prior where it is to be `best`.
        limits: ceilings by evaluation set.
        now: loss by set at the decision; empty: that of the first candidate.
        before: mixture that the weights come from; None: the one in force, or not known.
    """

    components: Components
    sets: tuple[str, ...]
    objective: Objective | Mapping[str, float]
    current: Mixture
    prior: Mixture
    lower: dict[str, float]
    upper: dict[str, float]
    settings: ProposalConfig
    seed: int
    old: OldPart | None = None
    steps: float | None = None
    probe_steps: float | None = None
    known: Known | None = None
    free: Mapping[str, Mixture] = field(default_factory=dict)
    limits: Mapping[str, Limit] = field(default_factory=dict)
    now: Mapping[str, float] = field(default_factory=dict)
    before: Mixture | None = None

    @property
    def aim(self) -> Objective:
        """What is minimised."""
        return Objective.of(self.objective)

    @property
    def counts(self) -> bool:
        """Whether the decision's own law is used, which counts."""
        return self.known is not None and self.settings.law == "auto"

    def feasible(self, mixture: Mixture) -> bool:
        """Whether a mixture keeps all bounds and caps."""
        return all(
            self.lower.get(name, 0.0) - 1e-6 <= share <= self.upper.get(name, 1.0) + 1e-6
            for name, share in mixture.over(self.current.domains).items()
        )

    def extrapolation(self, anchor: np.ndarray) -> Extrapolation | None:
        """How the law is read for models that are trained for the rest of the stage; None: as fitted.

        Args:
            anchor: (D,) shares in force, over the law's domains.
        """
        settings = self.settings
        if settings.law not in FOR_TRAINED or self.steps is None:
            return None
        growth = None
        if self.probe_steps is not None:
            growth = stage_growth(SLOPE_GROWTH, EPS_STEPS, self.steps, self.probe_steps)
        return Extrapolation(
            eps=EPS_STEPS / self.steps,
            growth=growth,
            slope_trust=SLOPE_TRUST,
            transfer_trust=TRANSFER_TRUST,
            anchor=anchor.tolist(),
        )


@dataclass
class FittedDecision:
    """The law and the proposal it leads to.

    Args:
        law: fitted, over domains, or over `old` and the new ones; None where too few candidates are usable.
        proposal: over the law's domains.
        mixture: the proposal over all domains.
        weights: (C,) interpolation weights that simulate the proposal.
        seconds: spent on fitting and solving.
    """

    law: FittedLaw | None
    proposal: Proposal | None
    mixture: Mixture | None
    weights: np.ndarray | None
    seconds: float

    def promise(self) -> dict[str, Any]:
        """What the law expects of training on the proposal, for decision.json; losses in nats per token."""
        law, proposal = self.law, self.proposal
        if law is None or proposal is None:
            return {
                "predicted": {}, "predicted_gain": None, "predicted_std": None, "kl": None, "binding": [],
            }  # fmt: skip
        spread = law.objective_std(proposal.mixture.array(law.domains)[None])
        return {
            "predicted": proposal.predicted,
            "predicted_gain": proposal.gain,
            "predicted_std": float(spread[0]),
            "kl": proposal.kl,
            "binding": proposal.binding,
        }


@dataclass(frozen=True)
class Gain:
    """By how much the objective falls, in its unit: estimate and interval."""

    mean: float
    low: float
    high: float
    confidence: float
    unit: str = UNITS["loss"]


@dataclass(frozen=True)
class Decision:
    """A decision as it is written to decision.json.

    Args:
        kept: `proposal` or `old`: which mixture is in force from here.
        reason: in words.
        trials: candidates scored, the proposal's check not among them.
        proposal: share by domain.
        mixture: share by domain in force from here.
        gain: measured on the simulated proposal against the mixture in force before; None: not measured.
        law: evaluation set or `objective` -> quality by cross-validation.
        details: what else the report shows.
    """

    index: int
    step: int
    stage: str
    kept: str
    reason: str
    trials: int
    usable: int
    current: dict[str, float]
    proposal: dict[str, float]
    mixture: dict[str, float]
    gain: dict[str, Any] | None = None
    law_name: str = ""
    law: dict[str, dict[str, Any]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self)


def fit_decision(rows: Sequence[TrialRow], question: DecisionInputs) -> FittedDecision:
    """Fit the law on the usable rows, in data coordinates, and find the proposal."""
    began = time.monotonic()
    usable = _usable(rows)
    if len(usable) < LEAST_ROWS and not question.counts:
        return FittedDecision(None, None, None, None, time.monotonic() - began)
    law = fit(usable, question)
    old = question.old
    current = question.current if old is None else old.reduced(question.current)
    proposal = propose(
        law,
        prior=_prior(law, question),
        kl=kl_in_unit(law, question.aim, question.settings.kl, current.array(law.domains)),
        lower=question.lower,
        upper=question.upper,
        current=current,
        expand=None if old is None else old.expand,
        ceilings=_ceilings(law, usable, question),
        seed=question.seed,
    )
    mixture = (proposal.leaves or proposal.mixture).over(question.components.domains)
    weights = question.components.weights_for(mixture)
    return FittedDecision(law, proposal, mixture, weights, time.monotonic() - began)


def fit(usable: Sequence[TrialRow], question: DecisionInputs) -> FittedLaw:
    """The law of usable candidates, over domains, or over `old` and the new ones."""
    domains, current, old = list(question.components.domains), question.current, question.old
    ratios = np.array([[row.ratios[name] for name in domains] for row in usable]).reshape(-1, len(domains))
    if old is not None:
        domains, current, ratios = old.names, old.reduced(current), old.reduce(ratios)
    losses = usable_losses(usable, question.sets) if usable else np.zeros((0, len(question.sets)))
    aim = question.aim
    near = usable[0].losses if usable else {}
    weights = dict.fromkeys(question.sets, 0.0) | aim.weights_at(near)
    if question.counts:
        assert question.known is not None
        law = fit_data_law(
            ratios, losses, question.known, current=question.current, sets=question.sets,
            objective=weights, old=old, steps=question.steps or 1.0,
            probe_steps=question.probe_steps, seed=question.seed,
        )  # fmt: skip
        return aimed(levelled(law, now_of(usable, question), _before(law, question)), aim)
    law = fit_law(
        ratios,
        losses,
        domains=domains,
        metric_names=list(question.sets),
        law=question.settings.law,
        objective=weights,
        seed=question.seed,
        extrapolate=question.extrapolation(current.array(domains)),
        slopes=slopes_of(usable, question.sets, question.components, old),
        own=None if old is None else dict.fromkeys(old.inside, OLD),
    )
    return aimed(law, aim)


def now_of(usable: Sequence[TrialRow], question: DecisionInputs) -> Mapping[str, float]:
    """Loss by set at the decision: as given, or under the first candidate; empty where neither is known."""
    return question.now or (usable[0].losses if usable else {})


def _before(law: FittedLaw, question: DecisionInputs) -> np.ndarray | None:
    before, old = question.before, question.old
    if before is None:
        return None
    return (before if old is None else old.reduced(before)).array(law.domains)


def _ceilings(law: FittedLaw, usable: Sequence[TrialRow], question: DecisionInputs) -> dict[str, Ceiling]:
    return ceilings_of(law, question.limits, now_of(usable, question), _before(law, question))


def _usable(rows: Sequence[TrialRow]) -> list[TrialRow]:
    return [row for row in rows if row.usable and math.isfinite(row.objective)]


def _prior(law: FittedLaw, question: DecisionInputs) -> Mixture:
    """The mixture that the KL term holds on to: the one asked for, or of the free ones what the law likes best."""
    if question.settings.prior != "best" or not question.counts or not question.free:
        return question.prior

    def expected(name: str) -> float:
        mixture, old = question.free[name], question.old
        return float(law.objective((mixture if old is None else old.reduced(mixture)).array(law.domains))[0])

    return question.free[min(question.free, key=expected)].joined()


def measure_gain(
    old: TrialRow, new: TrialRow, objective: Objective | Mapping[str, float],
    *, confidence: float, resamples: int, seed: int,
) -> Gain:  # fmt: skip
    """Gain of one candidate over another by a paired bootstrap over sequences (Efron and Tibshirani 1993, ch. 13).

    Sequences are drawn again inside each evaluation set, the same ones for both candidates.

    Args:
        old, new: rows scored on the same sequences.
        objective: what is minimised; weights by set mean the weighted mean loss.
        confidence: of the two-sided percentile interval.
        resamples: bootstrap samples.
        seed: of the draws.
    """
    rng = np.random.default_rng([seed, 7])
    aim = Objective.of(objective)
    means, drawn = np.empty((2, len(aim.sets))), np.empty((2, resamples, len(aim.sets)))
    for place, name in enumerate(aim.sets):
        targets = np.array(old.targets[name], dtype=np.float64)
        counts = rng.multinomial(len(targets), np.full(len(targets), 1 / len(targets)), size=resamples)
        for number, row in enumerate((old, new)):
            nats = np.array(row.nats[name])
            means[number, place] = nats.sum() / max(1.0, targets.sum())
            drawn[number, :, place] = (counts @ nats) / np.maximum(1.0, counts @ targets)
    before, after = aim.value(means)
    draws = aim.value(drawn[0]) - aim.value(drawn[1])
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Gain(float(before - after), float(low), float(high), confidence, aim.unit)


def conclude(
    rows: Sequence[TrialRow], checked: TrialRow | None, found: FittedDecision, question: DecisionInputs,
    *, index: int, step: int, stage: str,
) -> Decision:  # fmt: skip
    """Keep the proposal if its measured gain is certainly above 0, else the mixture in force."""
    if question.counts and found.proposal is not None and found.law is not None:
        return _chosen(rows, checked, found, question, index=index, step=step, stage=stage)
    old = rows[0]
    usable = _usable(rows)
    gain: Gain | None = None
    kept, reason = "old", ""
    if found.proposal is None or found.law is None:
        reason = f"only {len(usable)} of {len(rows)} candidates gave a finite loss; a law needs {LEAST_ROWS}"
    elif not question.settings.verify:
        kept, reason = "proposal", "proposals are taken without a check"
    elif checked is None or checked.status != "ok":
        reason = "the proposal gave no finite loss when it was checked"
    elif old.status != "ok":
        reason = "the mixture in force gave no finite loss, so there is nothing to compare with"
    else:
        gain = measure_gain(
            old, checked, question.objective, confidence=CONFIDENCE, resamples=RESAMPLES, seed=question.seed
        )
        interval = (
            f"{gain.mean:+.4f} {gain.unit}, "
            f"{100 * gain.confidence:g} % interval {gain.low:+.4f} to {gain.high:+.4f}"
        )
        if gain.low > 0:
            kept, reason = "proposal", f"the measured gain of the proposal is {interval}"
        elif gain.high < 0:
            reason = f"the proposal is worse than the mixture in force: gain {interval}"
        else:
            reason = f"the measured gain of the proposal may be 0: {interval}"
    proposal = found.mixture or question.current
    limits: dict[str, dict[str, Any]] = {}
    if question.limits and found.law is not None and found.proposal is not None:
        kept, limits, words = _within(found.law, found.proposal.mixture, kept, usable, question)
        reason += f"; {words}"
    mixture = proposal if kept == "proposal" else question.current
    return Decision(
        index=index,
        step=step,
        stage=stage,
        kept=kept,
        reason=reason,
        trials=len(rows),
        usable=len(usable),
        current=question.current.shares,
        proposal=proposal.shares,
        mixture=mixture.shares,
        gain=asdict(gain) if gain else None,
        law_name=found.law.name if found.law else "",
        law=dict(found.law.quality) if found.law else {},
        details={
            **found.promise(),
            "limits": limits,
            "simulated": checked.ratios if checked else {},
            "losses_old": old.losses,
            "losses_proposal": checked.losses if checked else {},
        },
    )


def _within(
    law: FittedLaw, proposal: Mixture, kept: str, usable: Sequence[TrialRow], question: DecisionInputs
) -> tuple[str, dict[str, dict[str, Any]], str]:
    """Which of proposal and mixture in force is taken where limits are to be kept, what is said of them, and why."""
    current = question.current if question.old is None else question.old.reduced(question.current)
    ceilings = _ceilings(law, usable, question)
    found = {
        name: told(law, ceilings, mixture.array(law.domains))
        for name, mixture in (("proposal", proposal), ("old", current))
    }
    other = "old" if kept == "proposal" else "proposal"
    if missed(found[kept]) > missed(found[other]):
        kept = other
    return kept, found[kept], in_words(found[kept])


def _chosen(
    rows: Sequence[TrialRow], checked: TrialRow | None, found: FittedDecision, question: DecisionInputs,
    *, index: int, step: int, stage: str,
) -> Decision:  # fmt: skip
    """The mixture of least expected regret among the proposal, the way to it, and the free ones."""
    assert found.mixture is not None
    measured = checked is not None and checked.status == "ok"
    usable = _usable([*rows, *([checked] if checked is not None and measured else [])])
    law = fit(usable, question)
    old, current = question.old, question.current
    half = Mixture({name: 0.5 * current[name] + 0.5 * found.mixture[name] for name in current})
    free = {name: mixture for name, mixture in question.free.items() if mixture != current}
    others = {"proposal": found.mixture, "half of the way to the proposal": half, **free}
    choice = choose(
        law,
        {name: m if old is None else old.reduced(m) for name, m in others.items() if question.feasible(m)},
        current if old is None else old.reduced(current),
        question.aim.unit,
        _ceilings(law, usable, question),
    )
    gain = None
    if checked is not None and measured and rows and rows[0].status == "ok":
        gain = asdict(
            measure_gain(
                rows[0], checked, question.objective, confidence=CONFIDENCE,
                resamples=RESAMPLES, seed=question.seed,
            )
        )  # fmt: skip
    mixture = current if choice.name == choice.CURRENT else others[choice.name]
    lost = bool(rows) and not _usable(rows)
    alone = (
        f"none of {len(rows)} candidates gave a finite loss, so that it is counted alone: " if lost else ""
    )
    return Decision(
        index=index,
        step=step,
        stage=stage,
        kept="old" if choice.name == choice.CURRENT else "proposal",
        reason=f"{alone}{choice.reason}",
        trials=len(rows),
        usable=len(_usable(rows)),
        current=current.shares,
        proposal=found.mixture.shares,
        mixture=mixture.shares,
        gain=gain,
        law_name=law.name,
        law=dict(law.quality),
        details={
            **found.promise(),
            "choice": choice.to_dict(),
            "limits": choice.limits,
            "simulated": checked.ratios if checked else {},
            "losses_old": rows[0].losses if rows else {},
            "losses_proposal": checked.losses if checked else {},
        },
    )


def prior_mixture(kind: str | Mapping[str, float], current: Mixture, tokens: Mapping[str, float]) -> Mixture:
    """The mixture that the KL term holds on to.

    With `current`, a domain that has no share yet gets the share it would have in a uniform mixture and the rest
    shrinks in proportion: KL to a prior of 0 would keep it out for ever.
    """
    names = current.domains
    if kind == "uniform":
        return Mixture.uniform(names)
    if kind == "proportional":
        return Mixture.proportional({name: tokens[name] for name in names})
    return (current if isinstance(kind, str) else Mixture(kind).over(names)).joined()
