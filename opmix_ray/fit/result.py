"""What one call of `opmix fit` found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from opmix_ray.decision.propose import Proposal
from opmix_ray.fit.direction import turned
from opmix_ray.fit.kl import KlCurve
from opmix_ray.fit.options import Objective
from opmix_ray.fit.sizes import Scale
from opmix_ray.fit.sweep import Sweep
from opmix_ray.laws import FittedLaw
from opmix_ray.mixture import Mixture

FORMAT = 1  # of fit.json


@dataclass(frozen=True)
class FitResult:
    """One call of `fit_command`, for the page and for `fit.json`.

    Args:
        sweep: the rows.
        law: fitted to them; metrics that are better when higher as losses.
        prior: mixture that KL holds on to.
        objective: what was minimised.
        kl: weight of the KL term.
        lower, upper: least and greatest shares by domain, of bounds and caps together.
        proposal: the mixture found; its predictions as losses.
        notes: what was done on the way, in words.
        inputs: the files and options given.
        seconds: `fit` and `propose`.
        tops: metric that is better when higher -> value that it is subtracted from.
        kl_curve: how the weight of the KL term was chosen, with `--kl auto`.
    """

    sweep: Sweep
    law: FittedLaw
    prior: Mixture
    objective: Objective
    kl: float
    lower: dict[str, float]
    upper: dict[str, float]
    proposal: Proposal
    notes: list[str]
    inputs: dict[str, Any]
    seconds: dict[str, float]
    tops: dict[str, float] = field(default_factory=dict)
    kl_curve: KlCurve | None = None

    def predicted(self, ratios: np.ndarray) -> np.ndarray:
        """Metrics of mixtures in their own units and direction, (n, D) -> (n, M)."""
        return turned(self.law.predict(ratios), self.law.metric_names, self.tops)

    def target_words(self) -> str:
        """` for 410M`, where the law is for one of several sizes."""
        target = self.law.details.get("target")
        return f" for {Scale(**target).words()}" if target else ""

    def judged(self) -> np.ndarray:
        """Places of the rows that say how well the law predicts: those of its size, or of the one nearest to it."""
        scales, rows = self.sweep.scales, np.arange(len(self.sweep.runs))
        return rows if scales is None else scales.order(Scale(**self.law.details["target"]))[-1]

    def proposed(self) -> dict[str, Any]:
        """`mixture.json`: the proposal with the domains that no run has, and metrics in their own direction."""
        found = self.proposal.to_dict()
        found["mixture"] |= dict.fromkeys(self.sweep.unused, 0.0)
        at = self.proposal.mixture.array(self.law.domains)
        found["predicted"] = dict(zip(self.law.metric_names, self.predicted(at)[0].tolist(), strict=True))
        return found

    def to_dict(self) -> dict[str, Any]:
        """`fit.json`."""
        return {
            "format": FORMAT,
            "inputs": self.inputs,
            "rows": len(self.sweep.runs),
            "domains": self.sweep.domains,
            "metrics": self.sweep.metric_names,
            "maximised": list(self.tops),
            "law": self.law.name,
            "quality": self.law.quality,
            "details": self.law.details,
            "objective": dict(zip(self.law.metric_names, self.law.weights.tolist(), strict=True)),
            "prior": self.prior.shares,
            "kl": self.kl,
            "kl_curve": None if self.kl_curve is None else self.kl_curve.to_dict(),
            "bounds": {n: [self.lower.get(n, 0.0), self.upper.get(n, 1.0)] for n in self.sweep.domains},
            "proposal": self.proposed(),
            "unused_domains": self.sweep.unused,
            "left_out": [asdict(item) for item in self.sweep.left_out],
            "left_out_columns": [asdict(item) for item in self.sweep.left_out_columns],
            "notes": self.notes,
            "seconds": self.seconds,
        }
