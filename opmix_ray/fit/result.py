"""What one call of `opmix fit` found; and `opmix predict`, which asks it about other mixtures."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from opmix_ray.decision.propose import Proposal
from opmix_ray.errors import UserError, nearest
from opmix_ray.exchange.column_names import wide
from opmix_ray.exchange.columns import METADATA, mixtures, share_columns, turned
from opmix_ray.exchange.csv_table import CsvTable, read_csv
from opmix_ray.fit.kl import KlCurve
from opmix_ray.fit.options import Objective
from opmix_ray.fit.sizes import Scale
from opmix_ray.fit.sweep import Sweep, read_mixtures
from opmix_ray.laws import FittedLaw
from opmix_ray.mixture import Mixture
from opmix_ray.storage import Storage

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


def predict_command(directory: str | Path, ratios: str | Path, output: str | Path) -> dict[str, Any]:
    """Predict the metrics of new mixtures with a law that `fit_command` wrote.

    Args:
        directory: output of `fit_command`, or a path to its `law.json`.
        ratios: CSV of mixtures with the domains' columns of the fit, in any order.
        output: CSV to write: the columns that name the runs, the metrics under their own names, `objective`
            (weighted mean of the metrics) and `objective_std` (its standard error for one new run).

    Returns:
        JSON values: `output`, `rows`, `notes`, `left_out` (a list of run, line and reason), `best` (run and
        objective).

    Raises:
        UserError: no law there or a damaged one, a domain is missing or unknown, no line holds a mixture, the output
            is the file of mixtures or cannot be written.
    """
    law = _law(directory)
    table = wide(read_csv(ratios))
    if Path(output).exists() and Path(output).samefile(ratios):
        raise UserError("is the file of mixtures", key="--output", value=output, remedy="name another file")
    for name in law.domains:
        if name not in table.header:
            raise UserError(
                "this domain has no column", file=ratios, key=name, remedy=nearest(name, table.header)
            )
        if table.is_text(name):
            raise UserError("holds words", file=ratios, key=name, remedy="give shares")
    unused = [name for name in law.details.get("unused_domains", []) if name in table.header]
    strange = [name for name in _shares(table) if name not in law.domains and name not in unused]
    if strange:
        raise UserError(
            "the law knows no such domain",
            file=ratios,
            key=strange[0],
            remedy=nearest(strange[0], law.domains),
        )
    found = read_mixtures(table, wanted=[*law.domains, *unused])
    if not found.rows:
        raise UserError(
            f"no line holds a mixture; the first: {found.left_out[0].reason}",
            file=ratios,
            remedy="give shares that sum to 1",
        )
    for place, name in enumerate(found.domains):
        if name in unused and found.shares[:, place].any():
            raise UserError(
                "the law was fitted to runs without this domain", file=ratios, key=name,
                remedy="give it a share of 0",
            )  # fmt: skip
    shares = found.shares[:, [found.domains.index(name) for name in law.domains]]
    predicted = turned(law.predict(shares), law.metric_names, law.details.get("maximised", {}))
    objective, std = law.objective(shares), law.objective_std(shares)
    named = [place for place, name in enumerate(table.header) if name.lower() in METADATA and name]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [*(table.header[place] for place in named), *law.metric_names, "objective", "objective_std"]
    )
    for row, line in enumerate(found.rows):
        cells = [table.rows[line][place] for place in named]
        writer.writerow(
            [*cells, *map(repr, [*predicted[row].tolist(), float(objective[row]), float(std[row])])]
        )
    target = Path(output)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text.getvalue(), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot be written: {error.strerror}", file=target, remedy="check the path"
        ) from None
    best = int(np.argmin(objective))
    return {
        "output": str(target),
        "rows": len(found.rows),
        "notes": found.notes,
        "left_out": [asdict(item) for item in found.left_out],
        "best": {
            "line": table.lines[found.rows[best]],
            **{table.header[place]: table.rows[found.rows[best]][place] for place in named},
            "objective": float(objective[best]),
            "objective_std": float(std[best]),
        },
    }


def _law(directory: str | Path) -> FittedLaw:
    """The law of a directory that `fit_command` wrote, or of its `law.json`."""
    file = Path(directory) if Path(directory).is_file() else None
    place, name = Storage(str(file.parent if file else directory)), file.name if file else "law.json"
    if not place.exists(name):
        raise UserError("holds no law.json", file=directory, remedy="name the output of `opmix fit`")
    try:
        return FittedLaw.from_dict(place.read_json(name))
    except UserError as error:
        raise UserError(error.problem, file=place.path(name), remedy=error.remedy) from None


def _shares(table: CsvTable) -> list[str]:
    """Columns that hold shares; none where the rows sum to nothing by which shares are told, as with tokens."""
    try:
        names = share_columns(table, None).names
    except UserError:
        return []
    sums = np.nansum(np.column_stack([table.values(name) for name in names]), axis=1)
    return names if mixtures(sums).any() else []
