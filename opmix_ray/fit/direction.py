"""Which way a metric is better. Laws are fitted to what is to be low: a metric to be high counts as what it lacks.

What it lacks is `1 - value` for a metric between 0 and 1, `100 - value` for one up to 100, else `-value`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from opmix_ray.errors import UserError
from opmix_ray.exchange.column_names import is_higher_better
from opmix_ray.fit.columns import choose

SHOWN = 5
Ask = Callable[[str], bool]


def maximised(
    metric_names: Sequence[str],
    metrics: np.ndarray,
    *,
    maximise: Sequence[str] = (),
    minimise: Sequence[str] = (),
    decides: Sequence[str] | None = None,
    ask: Ask | None = None,
    file: object = None,
) -> dict[str, float]:
    """For every metric that is better when higher the value from which it is subtracted.

    Args:
        metric_names, metrics: M names and (N, M) values.
        maximise, minimise: names or patterns of metrics that are better when higher, when lower.
        decides: metrics that the proposal depends on; only about these a direction has to be known. None: all.
        ask: puts a question to a person; None: nobody is there.

    Raises:
        UserError: an unknown name, one in both lists, or a metric whose name says that higher is better and of which
            nobody has said which it is.
    """
    up = set(choose(maximise, metric_names, file, "--maximise"))
    down = set(choose(minimise, metric_names, file, "--minimise"))
    if both := [name for name in metric_names if name in up & down]:
        raise UserError(
            "is to be both maximised and minimised",
            key="--maximise",
            value=both[0],
            remedy="name it with one of the two",
        )
    unsaid = [name for name in metric_names if is_higher_better(name) and name not in up | down]
    deciding = unsaid if decides is None else [name for name in unsaid if name in decides]
    if deciding and ask is None:
        more = f" and {len(deciding) - SHOWN} more" if len(deciding) > SHOWN else ""
        said = ", ".join(f"`{name}`" for name in deciding[:SHOWN])
        options = " ".join(f"--maximise '{name}'" for name in deciding[:SHOWN])
        raise UserError(
            f"{said}{more}: by {'its name' if len(deciding) == 1 else 'their names'} higher is better, and metrics "
            "are minimised",
            file=file,
            key=deciding[0],
            remedy=f"give {options}, or --minimise where lower is better (both take patterns, such as '*acc*')",
        )
    for name in deciding:
        assert ask is not None
        if ask(f"`{name}`: is higher better?"):
            up.add(name)
    up.update(name for name in unsaid if name not in deciding)
    return {name: _top(metrics[:, place]) for place, name in enumerate(metric_names) if name in up}


def _top(values: np.ndarray) -> float:
    """The best value that a metric can have, or 0 where it has none."""
    known = values[np.isfinite(values)]
    if not len(known) or known.min() < 0 or known.max() > 100:
        return 0.0
    return 1.0 if known.max() <= 1 else 100.0


def turned(values: np.ndarray, metric_names: Sequence[str], tops: Mapping[str, float]) -> np.ndarray:
    """Metrics (..., M) as losses, or such losses as metrics: `top - value` where higher is better."""
    found = np.array(values, dtype=np.float64)
    for place, name in enumerate(metric_names):
        if name in tops:
            found[..., place] = tops[name] - found[..., place]
    return found


def direction_notes(tops: Mapping[str, float]) -> list[str]:
    """What was done to metrics that are better when higher, in words."""
    by_top: dict[float, list[str]] = {}
    for name, top in tops.items():
        by_top.setdefault(top, []).append(name)
    found = []
    for top, names in by_top.items():
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        counted = f"{top:g} - value" if top else "-value"
        shown = ", ".join(f"`{name}`" for name in names[:SHOWN])
        found.append(f"higher is better for {shown}{more}: counted as {counted}")
    return found
