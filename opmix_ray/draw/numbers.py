"""Numbers as text: losses, shares, counts, durations. What is not a finite number becomes `n/a`.

Also round values along an axis, and how they are written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from opmix_ray.draw.panel import Scale

NOTHING = "n/a"
MINUS = "−"
NBSP = "\u00a0"  # a number and its unit stay on one line
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: Any) -> float:
    """The value as a float; NaN where it is not a number."""
    try:
        return float("nan") if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError):
        return float("nan")


def numbers(values: Any) -> dict[str, float]:
    """A mapping of names to numbers; empty where it is not a mapping."""
    if not isinstance(values, Mapping):
        return {}
    return {str(name): number(value) for name, value in values.items()}


def fixed(value: Any, digits: int = 4, *, sign: bool = False) -> str:
    """A number with so many decimals, very large ones shortened; with `sign` always + or −."""
    value = number(value)
    if not math.isfinite(value):
        return NOTHING
    if abs(value) >= 1e6:
        return power(value)
    text = f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"
    return text.replace("-", MINUS)


def loss(value: Any, *, sign: bool = False) -> str:
    """Nats per token, four decimals."""
    return fixed(value, 4, sign=sign)


def percent(value: Any, digits: int = 1, *, sign: bool = False) -> str:
    """A fraction as per cent."""
    text = fixed(100 * number(value), digits, sign=sign)
    return text if text == NOTHING else f"{text}{NBSP}%"


def share(value: Any) -> str:
    """A share of tokens as per cent; small ones are not rounded to nothing."""
    value = number(value)
    if 0 < value < 0.0005:
        return f"<{NBSP}0.1{NBSP}%"
    return percent(value, 1)


def count(value: Any) -> str:
    """A whole number with thousands marked, or a power of ten."""
    value = number(value)
    if not math.isfinite(value):
        return NOTHING
    return f"{value:,.0f}".replace("-", MINUS) if abs(value) < 1e10 else power(value)


def power(value: Any) -> str:
    """Three digits and a power of ten, `5.89 × 10⁹`; plain below a thousand."""
    value = number(value)
    if not math.isfinite(value):
        return NOTHING
    if value == 0 or 0.001 <= abs(value) < 1000:
        return f"{value:.3g}".replace("-", MINUS)
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}{NBSP}×{NBSP}10{str(int(exponent)).translate(_SUPERSCRIPT)}".replace("-", MINUS)


def seconds(value: Any) -> str:
    """A duration: `0.89 s`, `12.3 s`, `4 min 05 s`, `3 h 20 min`."""
    value = number(value)
    if not math.isfinite(value):
        return NOTHING
    if value < 10:
        return f"{fixed(value, 2)}{NBSP}s"
    if value < 100:
        return f"{value:.1f}{NBSP}s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s".replace(" ", NBSP)
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min".replace(" ", NBSP)


def size(value: Any) -> str:
    """Bytes with a binary unit."""
    value = number(value)
    if not math.isfinite(value):
        return NOTHING
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.{0 if unit == 'B' else 1}f}{NBSP}{unit}"
        value /= 1024
    return f"{value:,.1f}{NBSP}TiB"


def plural(many: int, noun: str, nouns: str | None = None) -> str:
    """`1 step`, `3 steps`."""
    return f"{many:,} {noun if many == 1 else nouns or noun + 's'}"


_DIGITS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−", "-0123456789-")
_FIRST = re.compile(
    r"^[<~]?\s*([+-]?[\d,]*\.?\d+)(?:\s*×\s*10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?\s*(KiB|MiB|GiB|TiB|h|min)?(?=$|\s|[,;)%])"
)
_SCALE = {"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40, "h": 3600.0, "min": 60.0}


def parsed(text: object) -> str:
    """What a text of this module sorts by: its first number with the unit counted in; empty where there is none."""
    found = _FIRST.match(str(text).replace(MINUS, "-").replace(NBSP, " ").strip())
    if found is None:
        return ""
    value = float(found[1].replace(",", "")) * _SCALE.get(found[3] or "", 1.0)
    if found[2]:
        value *= 10.0 ** int(found[2].translate(_DIGITS))
    rest = re.match(r"\s*(\d+)\s*(min|s)\b", str(text).replace(NBSP, " ").strip()[found.end() :])
    if rest and found[3] in ("h", "min"):
        value += float(rest[1]) * _SCALE.get(rest[2], 1.0)
    return f"{value:g}" if abs(value) < 1e5 and value == round(value, 4) else repr(value)


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
