"""What becomes of a decision whose probes did not all get trained.

A domain whose probe failed for good keeps its share, and the decision is about the others: what the other probes saw
is read as if they had seen that domain with the share it has. All candidates lack the same thing, so they are still
compared fairly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from opmix_ray.decision.rule import Decision
from opmix_ray.mixture import Mixture
from opmix_ray.model.probe import Probe
from opmix_ray.trials.space import OLD

_LEAST = 2  # probes between which there is something to decide


def can_do_without(lost: Mapping[str, str], names: Sequence[str], current: Mixture) -> bool:
    """Whether there is something to decide between the probes that are left.

    Args:
        lost: name of each probe that failed for good -> why.
        names: of all probes.
        current: mixture in force.
    """
    if not lost:
        return True
    left = [name for name in names if name not in lost]
    share = sum(current.get(name, 0.0) for name in lost)
    return OLD not in lost and len(left) >= _LEAST and share < 1 - 1e-9


def holding(probe: Probe, held: Mapping[str, float]) -> Probe:
    """A probe whose data are read with given shares of the domains that nothing is known about.

    Args:
        probe: of another domain.
        held: domain -> share; their sum is below 1.
    """
    seen = sum(share for name, share in probe.data.items() if name not in held)
    scale = (1 - sum(held.values())) / seen
    data = {name: share * scale for name, share in probe.data.items() if name not in held}
    return replace(probe, data={**data, **held})


def undecided(
    lost: Mapping[str, str], current: Mixture, *, index: int, step: int, stage: str, details: dict[str, Any]
) -> Decision:
    """The decision to keep the mixture in force where too few probes are left.

    Args:
        lost: name of each probe that failed for good -> why.
        current: mixture in force.
        index, step, stage: of the decision.
        details: what decision.json says besides.
    """
    names = ", ".join(lost)
    return Decision(
        index=index,
        step=step,
        stage=stage,
        kept="old",
        reason=f"too few probes are left to decide between; these failed: {names}",
        trials=0,
        usable=0,
        current=current.shares,
        proposal=current.shares,
        mixture=current.shares,
        details={"lost": dict(lost), **details},
    )
