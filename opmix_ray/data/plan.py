"""Repetition caps: how often a plan goes through each domain, and the mixture nearest to it that data allow.

>>> caps = share_caps({"code": 100, "prose": 900}, {"code": 4, "prose": 4}, {}, stage_tokens=1000)
>>> mixture, moved = fit_to_caps(Mixture({"code": 0.6, "prose": 0.4}), caps)
>>> {name: round(share, 9) for name, share in mixture.items()}
{'code': 0.4, 'prose': 0.6}
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from opmix_ray.errors import UserError
from opmix_ray.mixture import Mixture, fill_box

SHOWN = 8  # domains that an error names one by one
ROUNDING = 1e-9  # a share this close to a bound is at the bound


def epochs(
    mixture: Mapping[str, float],
    tokens_per_domain: Mapping[str, float],
    total_tokens: float,
    used: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """How often each domain of `mixture` will have been gone through: (share * total + used) / tokens.

    Args:
        mixture: shares by domain.
        tokens_per_domain: training tokens there are.
        total_tokens: tokens still to be drawn with this mixture.
        used: tokens drawn before; domains it leaves out get 0.

    Returns:
        Epochs by domain; infinite where tokens are asked of a domain that has none.
    """
    used = used or {}
    result = {}
    for name, share in mixture.items():
        drawn = share * total_tokens + used.get(name, 0)
        there = tokens_per_domain.get(name, 0)
        result[name] = drawn / there if there > 0 else (math.inf if drawn > 0 else 0.0)
    return result


def share_caps(
    available_tokens: Mapping[str, float],
    max_epochs: Mapping[str, float | None],
    used_tokens: Mapping[str, float],
    stage_tokens: float,
) -> dict[str, float]:
    """The greatest share of each domain in a stage: (max_epochs * available - used) / stage, within [0, 1].

    Args:
        available_tokens: training tokens there are, by domain.
        max_epochs: passes allowed over the whole run; None or no entry means any number. A domain without
            tokens gets 0 whatever its entry.
        used_tokens: tokens drawn before the stage; domains it leaves out get 0.
        stage_tokens: length of the stage, above 0.

    Raises:
        UserError: no mixture meets the caps, because they sum to less than 1; `stage_tokens` is not above 0,
            or a number of passes is negative.
    """
    if not 0 < stage_tokens < math.inf:
        raise UserError("a stage needs a number of tokens above 0", key="stage_tokens", value=stage_tokens)
    left = {}
    for name, there in available_tokens.items():
        passes = max_epochs.get(name)
        if passes is not None and not passes >= 0:
            remedy = "give a number of at least 0, or leave it out for no limit"
            raise UserError(
                "the number of epochs cannot be negative",
                key=f"max_epochs.{name}",
                value=passes,
                remedy=remedy,
            )
        if there <= 0:
            left[name] = 0.0
        else:
            left[name] = math.inf if passes is None else max(0.0, passes * there - used_tokens.get(name, 0))
    if math.fsum(left.values()) < stage_tokens * (1 - ROUNDING):
        raise _too_long(available_tokens, max_epochs, stage_tokens, left)
    return {name: min(1.0, tokens / stage_tokens) for name, tokens in left.items()}


def fit_to_caps(
    mixture: Mixture, caps: Mapping[str, float], lower: Mapping[str, float] | None = None
) -> tuple[Mixture, dict[str, float]]:
    """The mixture within the caps that keeps the proportions of `mixture` wherever it can.

    What a cap cuts off goes to the other domains in proportion to their shares (water-filling, see
    `mixture.fill_box`). A share of 0 stays 0 unless the domains with shares above 0 cannot fill the mixture.

    Args:
        mixture: the mixture wanted.
        caps: greatest share by domain; domains it leaves out may have any share.
        lower: least share by domain; domains it leaves out may have 0.

    Returns:
        The mixture, over the same domains, and the change of each share that moved (they sum to 0).

    Raises:
        UserError: the caps of the mixture's domains sum to less than 1, the least shares to more than 1, or a
            least share is above its cap.
    """
    names = mixture.domains
    wanted = mixture.array()
    upper = np.clip([caps.get(name, 1.0) for name in names], 0.0, 1.0)
    least = np.array([(lower or {}).get(name, 0.0) for name in names], dtype=np.float64)
    for name, low, high in zip(names, least.tolist(), upper.tolist(), strict=True):
        if low > high + ROUNDING:
            problem = f"the least share is above the greatest that the data allow, {high:.6g}"
            raise UserError(problem, key=name, value=low, remedy="lower it, or allow more epochs")
    if upper.sum() < 1 - ROUNDING:
        capped = sorted(zip(upper.tolist(), names, strict=True))
        listed = _listed([f"{name} at most {high:.4g}" for high, name in capped])
        raise UserError(
            f"the greatest shares that the data allow sum to {upper.sum():.4f}, below 1: {listed}",
            key="mixture",
            remedy="train for fewer steps, allow more epochs, or add data",
        )
    if ((wanted <= upper + ROUNDING) & (wanted >= least - ROUNDING)).all():
        return mixture, {}
    taking = (wanted > 0) | (least > 0)
    if upper[taking].sum() < 1 - ROUNDING:
        taking[:] = True
    shares = np.zeros_like(wanted)
    shares[taking] = fill_box(wanted[taking], np.minimum(least, upper)[taking], upper[taking])
    change = dict(zip(names, (shares - wanted).tolist(), strict=True))
    moved = {name: delta for name, delta in change.items() if abs(delta) > ROUNDING}
    return Mixture.from_array(names, shares), moved


def _too_long(
    available: Mapping[str, float],
    max_epochs: Mapping[str, float | None],
    stage_tokens: float,
    left: Mapping[str, float],
) -> UserError:
    """The error for a stage that asks for more tokens than all domains may still give."""
    missing = stage_tokens - math.fsum(left.values())
    more = missing / max(1.0, math.fsum(available.values()))
    lines = []
    for name in sorted(available, key=lambda name: -available[name]):
        if available[name] > 0:
            whole = f"{available[name]:,.0f} x {max_epochs[name]:g} epochs"
            part = f"{more * available[name]:,.0f} too few for its part"
            lines.append(f"{name} has {left[name]:,.0f} left of {whole}, {part}")
        else:
            lines.append(f"{name} has no tokens")
    return UserError(
        f"the plan asks for {stage_tokens:,.0f} tokens, exceeds the {stage_tokens - missing:,.0f} there are "
        f"by {missing:,.0f}, or {more:.3g} epochs of all data: {_listed(lines)}",
        key="max_epochs",
        remedy="train for fewer steps, allow more epochs, or add data",
    )


def _listed(parts: list[str]) -> str:
    more = [f"and {len(parts) - SHOWN} more"] if len(parts) > SHOWN else []
    return "; ".join(parts[:SHOWN] + more)
