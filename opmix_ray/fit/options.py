"""The small files beside a sweep: prior, repetition caps, bounds, objective. YAML or JSON, names to values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opmix_ray.config import read_yaml
from opmix_ray.errors import UserError, nearest
from opmix_ray.mixture import Mixture, share_caps

CAP_KEYS = ("tokens", "max_epochs", "used")
OBJECTIVE_KEYS = ("weights", "current", "no_worse_than", "worst_case", "reference")


@dataclass(frozen=True)
class Caps:
    """What a caps file says.

    Args:
        upper: greatest share by domain.
        tokens: training tokens by domain, where the file gives them.
    """

    upper: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    Args:
        weights: metric -> weight; none: the same for all.
        current: mixture in force, from which gains and `no_worse_than` are measured; none: the prior.
        no_worse_than: by how much a metric may exceed its prediction at `current`.
        worst_case: minimise the greatest excess over `reference` instead of the weighted mean.
        reference: metric -> value; none: predictions at `current`.
    """

    weights: dict[str, float] | None = None
    current: Mixture | None = None
    no_worse_than: dict[str, float] | float | None = None
    worst_case: bool = False
    reference: dict[str, float] | None = None


def read_caps(path: str | Path | None, domains: Sequence[str]) -> Caps:
    """Greatest shares: given as such (`code: 0.3`), or by repetition.

    By repetition a file holds `stage_tokens: 1e9` and `domains: {code: {tokens: 2e8, max_epochs: 4, used: 0}}`; the
    greatest share is then `(max_epochs * tokens - used) / stage_tokens`.

    Raises:
        UserError: an unknown domain or key, a value that is no number, caps that no mixture meets.
    """
    if path is None:
        return Caps()
    tree = read_yaml(Path(path), "for example `code: 0.3`")
    if "stage_tokens" not in tree and "domains" not in tree:
        upper = {name: _number(value, path, name) for name, value in tree.items()}
        _known(upper, domains, path)
        for name, value in upper.items():
            if not 0 <= value <= 1:
                raise UserError(
                    "a greatest share must lie in [0, 1]",
                    file=path,
                    key=name,
                    value=value,
                    remedy="give a share, or `stage_tokens` and `domains` with `tokens` and `max_epochs`",
                )
        return Caps(upper)
    for key in tree:
        if key not in ("stage_tokens", "domains"):
            raise UserError(
                "unknown key", file=path, key=key, remedy=nearest(key, ["stage_tokens", "domains"])
            )
    entries = tree.get("domains")
    if not isinstance(entries, Mapping):
        raise UserError(
            "must map domains to tokens", file=path, key="domains", remedy="domains: {code: {tokens: 1e9}}"
        )
    _known(entries, domains, path, "domains.")
    given: dict[str, dict[str, float]] = {key: {} for key in CAP_KEYS}
    for name, entry in entries.items():
        entry = entry if isinstance(entry, Mapping) else {"tokens": entry}
        for key, value in entry.items():
            if key not in CAP_KEYS:
                raise UserError(
                    "unknown key", file=path, key=f"domains.{name}.{key}", remedy=nearest(str(key), CAP_KEYS)
                )
            given[key][name] = _number(value, path, f"domains.{name}.{key}", least=0)
        if name not in given["tokens"]:
            raise UserError("is missing", file=path, key=f"domains.{name}.tokens", remedy="give its tokens")
    if "stage_tokens" not in tree:
        if given["max_epochs"]:
            raise UserError(
                "is missing", file=path, key="stage_tokens", remedy="give the tokens of the stage"
            )
        return Caps({}, given["tokens"])
    stage = _number(tree["stage_tokens"], path, "stage_tokens", least=1)
    # a domain that the file leaves out has no cap
    tokens = {name: given["tokens"].get(name, math.inf) for name in domains}
    try:
        upper = share_caps(tokens, given["max_epochs"], given["used"], stage)
    except UserError as error:
        raise UserError(
            error.problem, file=path, key=error.key, value=error.value, remedy=error.remedy
        ) from None
    return Caps({name: cap for name, cap in upper.items() if cap < 1}, given["tokens"])


def read_bounds(path: str | Path | None, domains: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Least and greatest shares: `code: [0.1, 0.4]` or `code: {min: 0.1, max: 0.4}`, each side may be left out.

    Raises:
        UserError: an unknown domain, something else than two numbers in [0, 1], or least above greatest.
    """
    lower: dict[str, float] = {}
    upper: dict[str, float] = {}
    if path is None:
        return lower, upper
    tree = read_yaml(Path(path), "for example `code: [0.1, 0.4]`")
    _known(tree, domains, path)
    for name, entry in tree.items():
        if isinstance(entry, Mapping) and set(entry) <= {"min", "max"}:
            low, high = entry.get("min", 0.0), entry.get("max", 1.0)
        elif isinstance(entry, list) and len(entry) == 2:
            low, high = (0.0 if entry[0] is None else entry[0]), (1.0 if entry[1] is None else entry[1])
        else:
            raise UserError(
                "must be [least, greatest]", file=path, key=name, value=entry, remedy=f"{name}: [0.1, 0.4]"
            )
        lower[name], upper[name] = _number(low, path, name), _number(high, path, name)
        if not 0 <= lower[name] <= upper[name] <= 1:
            raise UserError(
                "needs 0 <= least <= greatest <= 1", file=path, key=name, value=entry, remedy="mend the bound"
            )
    return lower, upper


def limits(
    bounds: str | Path | None, caps: str | Path | None, domains: Sequence[str]
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Least and greatest shares of a bounds and a caps file together, and the tokens that the latter gives.

    Raises:
        UserError: see `read_bounds` and `read_caps`; or a least share is above the greatest that the caps allow.
    """
    read = read_caps(caps, domains)
    lower, upper = read_bounds(bounds, domains)
    for name, cap in read.upper.items():
        upper[name] = min(cap, upper.get(name, 1.0))
        if lower.get(name, 0.0) > upper[name] + 1e-9:
            raise UserError(
                f"the least share {lower[name]:.4g} is above the greatest that the caps allow, {upper[name]:.4g}",
                file=bounds,
                key=name,
                remedy="lower it, or raise the cap",
            )
    return lower, upper, read.tokens


def read_prior(
    prior: str | Path | None,
    domains: Sequence[str],
    tokens: Mapping[str, float],
    used: Sequence[str] | None = None,
) -> Mixture:
    """The mixture that KL holds on to: `uniform`, `proportional` to tokens, or a file (a `mixture.json` too).

    None means proportional where there are tokens of every domain, else uniform. `used` are the domains that the
    mixture is over in the end; those that a file gives the others are divided among them.

    Raises:
        UserError: no tokens for `proportional`, no such file, an unknown domain, no share above 0.
    """
    known, domains = domains, list(used or domains)
    complete = all(name in tokens for name in domains)
    if prior is None:
        prior = "proportional" if complete else "uniform"
    if prior == "uniform":
        return Mixture.uniform(domains)
    if prior == "proportional":
        if not complete:
            missing = [name for name in domains if name not in tokens]
            raise UserError(
                f"needs the tokens of every domain; missing: {', '.join(missing[:5])}",
                key="--prior",
                value="proportional",
                remedy="give them in the caps file (domains: {code: {tokens: 2e8}}), or use uniform or a file",
            )
        return Mixture.proportional({name: tokens[name] for name in domains})
    if not Path(prior).exists():
        raise UserError(
            "is neither `uniform`, `proportional` nor a file",
            key="--prior",
            value=prior,
            remedy="check the path",
        )
    return _mixture(read_yaml(Path(prior), "for example `code: 0.5`"), known, prior, "", domains)


def read_objective(
    path: str | Path | None,
    metrics: Sequence[str],
    domains: Sequence[str],
    used: Sequence[str] | None = None,
) -> Objective:
    """What to minimise: `metric: weight` for some metrics, or the keys of `Objective`; `used` as in `read_prior`.

    Raises:
        UserError: an unknown metric, domain or key, or a value of the wrong kind.
    """
    if path is None:
        return Objective()
    tree = read_yaml(Path(path), f"for example `{metrics[0]}: 1`")
    if not set(tree) & set(OBJECTIVE_KEYS) or set(tree) <= set(metrics):
        tree = {"weights": tree}
    for key in map(str, tree):
        if key in metrics:
            raise UserError(
                "is a metric beside other keys", file=path, key=key, remedy=f"weights: {{{key}: ...}}"
            )
        if key not in OBJECTIVE_KEYS:
            raise UserError(
                "unknown key", file=path, key=key, remedy=nearest(key, [*OBJECTIVE_KEYS, *metrics])
            )

    def values(key: str, least: float | None = None) -> dict[str, float] | None:
        entry = tree.get(key)
        if entry is None:
            return None
        if not isinstance(entry, Mapping):
            raise UserError(
                "must map metrics to numbers", file=path, key=key, value=entry, remedy=f"{key}: {{...}}"
            )
        found = {str(name): _number(value, path, str(name), least) for name, value in entry.items()}
        _known(found, metrics, path, what="metric")
        return found

    weights = values("weights", least=0)
    if weights is not None and not sum(weights.values()) > 0:
        raise UserError(
            "no metric has a weight above 0", file=path, key="weights", remedy="give one a weight"
        )
    slack = tree.get("no_worse_than")
    worst_case = tree.get("worst_case", False)
    if not isinstance(worst_case, bool):
        raise UserError(
            "must be true or false", file=path, key="worst_case", value=worst_case, remedy="mend it"
        )
    current = tree.get("current")
    return Objective(
        weights=weights,
        current=None if current is None else _mixture(current, domains, path, "current.", used or domains),
        no_worse_than=values("no_worse_than")
        if isinstance(slack, Mapping) or slack is None
        else _number(slack, path, "no_worse_than"),
        worst_case=worst_case,
        reference=values("reference"),
    )


def _mixture(tree: Any, domains: Sequence[str], path: str | Path, key: str, used: Sequence[str]) -> Mixture:
    if isinstance(tree, Mapping) and isinstance(tree.get("mixture"), Mapping):
        tree = tree["mixture"]
    if not isinstance(tree, Mapping):
        raise UserError("must map domains to shares", file=path, key=key.rstrip("."), remedy="code: 0.5")
    shares = {str(name): _number(value, path, f"{key}{name}", least=0) for name, value in tree.items()}
    _known(shares, domains, path, key)
    if not sum(shares.get(name, 0.0) for name in used) > 0:
        raise UserError(
            "no domain has a share above 0" + ("" if len(used) == len(domains) else " that a run has tried"),
            file=path,
            key=key.rstrip(".") or None,
            remedy="give one a share",
        )
    return Mixture(shares).over(used)


def _number(value: Any, path: str | Path, key: str, least: float | None = None) -> float:
    """A finite number; YAML reads `1e9` as a word, which is meant as a number here."""
    try:
        if isinstance(value, bool):
            raise ValueError
        found = float(value)
    except (TypeError, ValueError):
        raise UserError(
            "must be a number", file=path, key=key, value=value, remedy="for example 0.25"
        ) from None
    if not math.isfinite(found) or (least is not None and found < least):
        bound = "" if least is None else f" of at least {least:g}"
        raise UserError(f"must be a finite number{bound}", file=path, key=key, value=value, remedy="mend it")
    return found


def _known(
    given: Mapping[Any, Any], known: Sequence[str], path: str | Path, key: str = "", what: str = "domain"
) -> None:
    for name in given:
        if name not in known:
            raise UserError(
                f"no such {what}", file=path, key=f"{key}{name}", remedy=nearest(str(name), known)
            )
