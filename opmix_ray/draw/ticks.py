"""Round values along an axis, and how they are written."""

from __future__ import annotations

import math

from opmix_ray.draw.numbers import MINUS, NBSP, power
from opmix_ray.draw.panel import Scale


def ticks(low: float, high: float, most: int, scale: Scale = "number") -> list[float]:
    """At most `most` round values between two limits, evenly spaced by 1, 2 or 5 times a power of ten."""
    rough = (high - low) / max(1, most)
    if not math.isfinite(rough) or rough <= 0:
        return [low]
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    if scale == "whole":
        step = max(1.0, step)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def tick_labels(values: list[float], scale: Scale = "number") -> list[str]:
    """Labels with as many decimals as their spacing needs."""
    if scale == "percent":
        return [f"{text}{NBSP}%" for text in tick_labels([100 * value for value in values])]
    if not values:
        return []
    step = values[1] - values[0] if len(values) > 1 else abs(values[0]) or 1.0
    if max(abs(value) for value in values) >= 1e7 or 0 < step < 1e-6:
        return [power(value) for value in values]
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    return [f"{value + 0.0:,.{digits}f}".replace("-", MINUS) for value in values]
