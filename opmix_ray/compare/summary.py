"""From the results of runs to rows, to means with intervals over seeds, and to tables in CSV, terminal and page."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from opmix_ray.output.ledger import DECIDING, TRAINING

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Row:
    """One finished run.

    Args:
        losses: of every evaluation set at the end, nats per token; of questions the rate of wrong answers.
        perplexity, accuracy: of the sets of text, and of questions.
        mean_loss, mean_perplexity, mean_accuracy: over the sets of their kind; None: there are none.
        objective: of all sets with the configured weights.
        forgetting: see `forgetting`; None: there was nothing to forget.
        steps: of the main run.
        tokens: trained on or passed through for the mixture, reports left out.
        flops: of the main run and of everything that was done to decide.
        search_flops: the part of it that was done to decide.
        worker_seconds: of all workers together, reports left out.
        wall_seconds: from start to end, over all attempts.
        mixture: the last one.
        kept: step of each stage's weights, with `train.keep: best`.
    """

    strategy: str
    seed: int
    losses: dict[str, float]
    perplexity: dict[str, float]
    accuracy: dict[str, float]
    mean_loss: float | None
    mean_perplexity: float | None
    mean_accuracy: float | None
    objective: float
    forgetting: float | None
    steps: int
    tokens: float
    flops: float
    search_flops: float
    worker_seconds: float
    wall_seconds: float
    mixture: dict[str, float]
    kept: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self)


def row_of(strategy: str, result: Mapping[str, Any], wall_seconds: float, learned: Mapping[str, int]) -> Row:
    """The row of a run.

    Args:
        strategy: its name.
        result: content of its result.json.
        wall_seconds: it took.
        learned: evaluation set -> step at the end of the first stage that trained on it; 0: before the run.
    """
    last, ledger = result["evaluations"][-1], result["ledger"]
    counted = [purpose for purpose in (*TRAINING, *DECIDING) if purpose in ledger]
    return Row(
        strategy=strategy,
        seed=result["seed"],
        losses=last["losses"],
        perplexity=last["perplexity"],
        accuracy=last.get("accuracy", {}),
        mean_loss=last["mean_loss"],
        mean_perplexity=last["mean_perplexity"],
        mean_accuracy=last.get("mean_accuracy"),
        objective=last["objective"],
        forgetting=forgetting(result["evaluations"], learned),
        steps=result["steps"],
        tokens=sum(ledger[purpose]["tokens"] for purpose in counted),
        flops=sum(ledger[purpose]["flops"] for purpose in counted),
        search_flops=sum(ledger[purpose]["flops"] for purpose in DECIDING),
        worker_seconds=sum(ledger[purpose]["seconds"] for purpose in counted),
        wall_seconds=wall_seconds,
        mixture=result["final_mixture"],
        kept=result.get("kept", {}),
    )


def forgetting(evaluations: Sequence[Mapping[str, Any]], learned: Mapping[str, int]) -> float | None:
    """Mean rise of the loss of old domains since the best they ever were (Chaudhry et al. 2018, arXiv 1801.10112).

    Args:
        evaluations: in order of steps.
        learned: set -> step at which it had been trained on; sets of the last stage alone have nothing to forget.

    Returns:
        Nats per token, over the sets that had been learned before the last evaluation; None where there are none.
    """
    end = evaluations[-1]["step"]
    rises = []
    for name, step in learned.items():
        before = [e["losses"][name] for e in evaluations if step <= e["step"] < end and name in e["losses"]]
        if step < end and before:
            rises.append(evaluations[-1]["losses"][name] - min(before))
    return float(np.mean(rises)) if rises else None


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval; the ends are None where there is one seed only."""

    mean: float
    low: float | None
    high: float | None
    count: int


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean and Student's t interval."""
    data = np.asarray(values, dtype=np.float64)
    mean = float(data.mean())
    if len(data) < 2 or not np.isfinite(data).all():
        return Estimate(mean, None, None, len(data))
    half = float(stats.t.ppf(0.5 + confidence / 2, len(data) - 1) * data.std(ddof=1) / math.sqrt(len(data)))
    return Estimate(mean, mean - half, mean + half, len(data))


_QUANTITIES = (
    "mean_loss", "mean_perplexity", "mean_accuracy", "objective", "forgetting", "steps", "tokens", "flops",
    "search_flops", "worker_seconds", "wall_seconds",
)  # fmt: skip
_BY_SET = ("losses", "perplexity", "accuracy")


def summarise(rows: Sequence[Row], strategies: Sequence[str]) -> list[dict[str, Any]]:
    """One entry per strategy that has rows, in the order given; the first one is the baseline.

    A quantity that no run has is None. `versus` compares with the baseline seed by seed: `loss`, `accuracy` and
    `objective` are differences, `relative_loss`, `perplexity` and `flops` relative changes of the mean loss, the
    mean perplexity and all FLOPs.
    """
    baseline = {row.seed: row for row in rows if row.strategy == strategies[0]}
    found = []
    for name in strategies:
        own = [row for row in rows if row.strategy == name]
        if not own:
            continue
        entry: dict[str, Any] = {"strategy": name, "seeds": [row.seed for row in own]}
        entry |= {key: _known(getattr(row, key) for row in own) for key in _QUANTITIES}
        for key in _BY_SET:
            sets = getattr(own[0], key)
            entry[key] = {each: _known(getattr(row, key)[each] for row in own) for each in sets}
        pairs = [(row, baseline[row.seed]) for row in own if row.seed in baseline]
        entry["versus"] = _versus(pairs) if pairs and name != strategies[0] else None
        found.append(entry)
    return found


def _versus(pairs: Sequence[tuple[Row, Row]]) -> dict[str, Any]:
    def differences(key: str, relative: bool = False) -> dict[str, Any] | None:
        both = [(getattr(a, key), getattr(b, key)) for a, b in pairs]
        return _known(None if a is None or b is None else a / b - 1 if relative else a - b for a, b in both)

    return {
        "perplexity": differences("mean_perplexity", relative=True),
        "loss": differences("mean_loss"),
        "relative_loss": differences("mean_loss", relative=True),
        "accuracy": differences("mean_accuracy"),
        "objective": differences("objective"),
        "flops": differences("flops", relative=True),
    }


def _known(values: Iterable[float | None]) -> dict[str, Any] | None:
    """The estimate over the values there are; None where there is none."""
    there = [float(value) for value in values if value is not None]
    return asdict(estimate(there)) if there else None


_PLAIN = (
    "strategy", "seed", "mean_loss", "mean_perplexity", "mean_accuracy", "objective", "forgetting", "steps",
    "tokens", "flops", "search_flops", "worker_seconds", "wall_seconds",
)  # fmt: skip


def to_csv(rows: Sequence[Row]) -> str:
    """One line per run; `eval_<set>_loss` and `eval_<set>_perplexity` per set, as in metrics.csv."""
    sets = list(dict.fromkeys(name for row in rows for name in row.losses))
    head = [*_PLAIN, *(f"eval_{s}_loss" for s in sets), *(f"eval_{s}_perplexity" for s in sets)]
    lines = [
        [
            *("" if getattr(row, key) is None else getattr(row, key) for key in _PLAIN),
            *(row.losses.get(s, "") for s in sets),
            *(row.perplexity.get(s, "") for s in sets),
        ]
        for row in rows
    ]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *lines])
    return text.getvalue()


def table_rows(content: Mapping[str, Any]) -> list[dict[str, str]]:
    """The summary in few columns: what a person looks at first; `legend` says what they mean.

    Args:
        content: of compare.json.
    """
    summary = content["summary"]
    cells = {
        "mean loss": [_quantity(entry, "mean_loss", 4, "relative_loss") for entry in summary],
        "mean perplexity": [_quantity(entry, "mean_perplexity", 1, "perplexity") for entry in summary],
        "mean accuracy": [_quantity(entry, "mean_accuracy", 4) for entry in summary],
        "forgetting": [_quantity(entry, "forgetting", 4) for entry in summary],
        "FLOPs": [_flops(entry, content["equal_compute"]) for entry in summary],
        "of them search": [
            f"{100 * entry['search_flops']['mean'] / entry['flops']['mean']:.1f} %" for entry in summary
        ],
        "wall seconds": [f"{entry['wall_seconds']['mean']:.0f}" for entry in summary],
    }
    shown = {title: column for title, column in cells.items() if any(cell != "-" for cell in column)}
    return [
        {"strategy": entry["strategy"], **{title: column[place] for title, column in shown.items()}}
        for place, entry in enumerate(summary)
    ]


def legend(content: Mapping[str, Any]) -> str:
    """What the table's numbers mean."""
    first, *others = content["strategies"]
    changes = f"; in brackets: against {first}, seed by seed" if others else ""
    return f"± is half a 95 % interval over seeds{changes}."


def to_markdown(content: Mapping[str, Any]) -> str:
    """The same as a Markdown table, with its legend below."""
    rows = table_rows(content)
    if not rows:
        return ""
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{legend(content)}\n"


def _quantity(entry: Mapping[str, Any], key: str, digits: int, change: str | None = None) -> str:
    """A mean with its interval, and how it differs from the baseline's."""
    text = with_interval(entry[key], digits)
    found = entry["versus"] and change and entry["versus"][change]
    return f"{text} ({percentage(found)})" if found else text


def _flops(entry: Mapping[str, Any], equal: bool) -> str:
    """All FLOPs; where they are not meant to be equal, also against the baseline's."""
    text = f"{entry['flops']['mean']:.3g}"
    if equal or not entry["versus"]:
        return text
    return f"{text} ({100 * entry['versus']['flops']['mean']:+.1f} %)"


def with_interval(value: Mapping[str, Any] | None, digits: int) -> str:
    """Mean and half-width of the interval; `-` where there is no value."""
    if value is None:
        return "-"
    text = f"{value['mean']:,.{digits}f}"
    return text if value["low"] is None else f"{text} ± {value['mean'] - value['low']:,.{digits}f}"


def percentage(value: Mapping[str, Any]) -> str:
    """A relative change in per cent with its interval."""
    half = "" if value["low"] is None else f" ± {100 * (value['mean'] - value['low']):.2f}"
    return f"{100 * value['mean']:+.2f}{half} %"
