"""Seeded ways to break what was whole."""

from __future__ import annotations

import copy
import random
from typing import Any

_OTHERS: list[Any] = [
    None, True, False, 0, -1, 3, 10**30, 1.5, -1e308, float("nan"), float("inf"), "", "x", "\x1b[2J\n[red]", "3",
    [], [1], [None], {}, {"a": 1}, {"a": {"b": []}}, [[[[[[]]]]]],
]  # fmt: skip


def retyped(value: Any, rng: random.Random) -> Any:
    """A JSON value after one to three accidents to its shape: another type, a key or an entry gone or new."""
    tree = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 2, 3])):
        places = list(_places(tree))
        if not places:
            return copy.deepcopy(rng.choice(_OTHERS))
        holder, key = rng.choice(places)
        match rng.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[f"{key}x"] = holder.pop(key)
            case 2:
                other = rng.choice(places)
                held = copy.deepcopy(other[0][other[1]]) if _held(other) else None
                holder[key] = held
            case _:
                holder[key] = copy.deepcopy(rng.choice(_OTHERS))
    return tree if rng.random() < 0.97 else copy.deepcopy(rng.choice(_OTHERS))


def _places(tree: Any) -> Any:
    if isinstance(tree, dict | list):
        for key, entry in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield tree, key
            yield from _places(entry)


def _held(place: tuple[Any, Any]) -> bool:
    holder, key = place
    return key in holder if isinstance(holder, dict) else key < len(holder)


def broken(data: bytes, rng: random.Random) -> bytes:
    """The data after one to sixteen accidents: bits, bytes, cuts, gaps, insertions, copies, extreme numbers."""
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        if not damaged:
            break
        at, length = rng.randrange(len(damaged)), rng.randrange(1, 64)
        match rng.randrange(7):
            case 0:
                damaged[at] ^= 1 << rng.randrange(8)
            case 1:
                damaged[at] = rng.randrange(256)
            case 2:
                del damaged[at:]
            case 3:
                del damaged[at : at + length]
            case 4:
                damaged[at:at] = rng.randbytes(length)
            case 5:
                other = rng.randrange(len(damaged))
                damaged[at : at + length] = damaged[other : other + length]
            case _:
                extreme = rng.choice([b"\xff" * 8, b"\x00" * 8, b"\x7f" + b"\xff" * 7])
                damaged[at : at + 8] = extreme[: len(damaged) - at]
    return bytes(damaged)
