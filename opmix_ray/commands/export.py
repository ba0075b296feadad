"""A run's mixtures as other trainers' files, and its decisions as Optuna studies.

export("runs/demo", "megatron")          # -> Exported: runs/demo/export/megatron/megatron_blend.txt
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from opmix_ray.config import RunConfig, load_config
from opmix_ray.config.data import SourceConfig
from opmix_ray.decision.rule import Decision
from opmix_ray.errors import UserError, nearest
from opmix_ray.exchange import FORMATS
from opmix_ray.exchange.handover import Handover, Part, Unit, as_weight
from opmix_ray.mixture import Mixture
from opmix_ray.output.state import CONFIG, MIXTURE, STATE, read_config
from opmix_ray.sources.source import Source, open_source
from opmix_ray.storage import Storage, read_record, read_records, split_file
from opmix_ray.trials.rows import METRICS, RATIOS, TRIALS, TrialRow

EXPORT = "export"
_ENDINGS = (".txt", ".yaml", ".yml", ".json", ".py")


LEAST_SHARE = 1e-9  # below it a solver means nothing


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Args:
        format: its name.
        files: paths or URIs.
        unit: what the weights in them count.
        weights: by domain, summing to 1, in that unit.
        notes: what a person still has to do, in words.
    """

    format: str
    files: list[str]
    unit: Unit
    weights: dict[str, float]
    notes: list[str]


def export(
    source: str,
    format: str,
    output: str | None = None,
    *,
    config: Path | None = None,
    paths: Sequence[str] = (),
    unit: Unit | None = None,
    tokens: int | None = None,
) -> Exported:
    """Write a mixture in another trainer's format.

    Args:
        source: output of a run, a search or a fit, or a mixture.json; local or URI.
        format: a name in `FORMATS`.
        output: file or directory; none: `export/<format>` next to the mixture. A file only where the format is one.
        config: configuration that says where the data are; none: the one next to the mixture.
        paths: `NAME=PATH`: where the target finds a domain's data; a name may come several times.
        unit: what a sample of the target is, where that depends on the data; none: the format's own.
        tokens: that the target is to train on; none: those of the stage that the mixture is for.

    Raises:
        UserError: wrong input; nothing is written then.
    """
    if format not in FORMATS:
        raise UserError("no such format", key="--format", value=format, remedy=nearest(format, list(FORMATS)))
    target = FORMATS[format]
    if unit is not None and unit != target.unit and not target.free:
        raise UserError(
            f"the weights of {format} always count {target.unit}",
            key="--unit",
            value=unit,
            remedy="leave it out",
        )
    counts: Unit = unit or target.unit
    storage, name = _place(source)
    place, file = _output(storage, format, output)
    handover = _gather(storage, name, config, _given(paths), counts, tokens, place)
    written = target.write(handover, counts)
    if file is not None and len(written.files) > 1:
        raise UserError(
            f"{format} is {len(written.files)} files: {', '.join(written.files)}",
            key="--output", value=output, remedy="name a directory",
        )  # fmt: skip
    found = []
    for title, text in written.files.items():
        place.write_text(file or title, text)
        found.append(place.path(file or title))
    return Exported(format, found, counts, handover.weights(counts), written.notes)


def _place(source: str) -> tuple[Storage, str]:
    """The directory, and the name of the mixture's file in it."""
    if source.partition("?")[0].endswith(".json"):
        storage, name = split_file(source)
    else:
        storage, name = Storage(source), MIXTURE
    if not storage.exists(name):
        raise UserError(
            "holds no mixture",
            file=storage.path(name),
            remedy="name the output of `opmix run`, `opmix search` or `opmix fit`, or a mixture.json",
        )
    return storage, name


def _output(storage: Storage, format: str, output: str | None) -> tuple[Storage, str | None]:
    """Where the files go, and the name of the only one if the user gave it."""
    if output is None:
        return storage.child(EXPORT).child(format), None
    return split_file(output) if output.partition("?")[0].endswith(_ENDINGS) else (Storage(output), None)


def _given(paths: Sequence[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for pair in paths:
        name, mark, path = pair.partition("=")
        if not mark or not name or not path:
            raise UserError(
                "must look like NAME=PATH", key="--path", value=pair, remedy="--path code=/data/code"
            )
        found[name] = (*found.get(name, ()), path)
    return found


def _gather(
    storage: Storage, name: str, file: Path | None, paths: Mapping[str, tuple[str, ...]], unit: Unit,
    tokens: int | None, place: Storage,
) -> Handover:  # fmt: skip
    tree = storage.read_json(name)
    mixture = _mixture(tree, storage.path(name))
    run = load_config(file) if file is not None else read_config(storage) if storage.exists(CONFIG) else None
    state = storage.read_json(STATE) if storage.exists(STATE) else {}
    shares = {domain: share for domain, share in mixture.items() if share > LEAST_SHARE}
    for domain in paths:
        if domain not in mixture:
            raise UserError(
                "no such domain in the mixture",
                key="--path",
                value=domain,
                remedy=nearest(domain, list(mixture)),
            )
    counts = _counts(tree)
    if unit == "documents" and run is not None and not set(shares) <= set(counts):
        counts = _measured(run)
    sources = run.data.domains if run is not None else {}
    parts = tuple(
        Part(
            name=domain,
            share=share,
            source=sources.get(domain),
            opened=None if domain in paths or domain not in sources else _opened(domain, sources[domain]),
            paths=paths.get(domain, ()),
            documents=counts.get(domain, {}).get("documents"),
            tokens=counts.get(domain, {}).get("tokens"),
        )
        for domain, share in Mixture(shares).items()
    )
    step = f", step {state['step']}" if "step" in state else ""
    return Handover(
        origin=f"{storage.uri}{step}",
        parts=parts,
        place=place.uri if place.is_local else None,
        seed=run.seed if run is not None else 0,
        planned_tokens=tokens or _planned(run, str(state.get("stage", ""))),
        sweep=_sweep(storage),
        kl=run.proposal.kl if run is not None else None,
    )


def _mixture(tree: Any, file: str) -> Mixture:
    shares = tree.get("mixture") if isinstance(tree, dict) else None
    try:
        if not isinstance(shares, dict):
            raise ValueError("has no `mixture`")
        return Mixture({str(name): as_weight(share) for name, share in shares.items()})
    except ValueError as error:
        raise UserError(f"is not a mixture: {error}", file=file, remedy="name a run's mixture.json") from None


def _opened(name: str, source: SourceConfig) -> Source | None:
    """The source with its files, where they are reached from this machine."""
    try:
        return open_source(source, f"data.domains.{name}")
    except UserError:
        return None


def _counts(tree: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Documents and tokens by domain, as far as the mixture's file holds them."""
    counted = tree.get("domains")
    if not isinstance(counted, dict):
        return {}
    return {str(name): entry for name, entry in counted.items() if isinstance(entry, dict)}


def _measured(run: RunConfig) -> dict[str, dict[str, int]]:
    """The same counted now; data that were prepared before are found in the cache."""
    from opmix_ray.data.prepare import prepare

    prepared = prepare(run)
    return {
        name: {"documents": domain.train_documents, "tokens": domain.train_tokens}
        for name, domain in prepared.domains.items()
    }


def _planned(run: RunConfig | None, stage: str) -> int | None:
    """Tokens of the stage that the mixture is for; the last one where that is not known."""
    if run is None:
        return None
    found = next((entry for entry in run.stages if entry.name == stage), run.stages[-1])
    return found.steps * run.train.batch_size * run.data.seq_len


def _sweep(storage: Storage) -> tuple[str, str] | None:
    """`ratios.csv` and `metrics.csv` of the last decision that has both."""
    for name in reversed(storage.names("decisions")):
        place = storage.child("decisions").child(name)
        if place.exists(RATIOS) and place.exists(METRICS):
            return place.read_text(RATIOS), place.read_text(METRICS)
    return None


METRIC = "objective (nats per token)"
_STATES = {"ok": TrialState.COMPLETE}


def write_studies(directory: str, file: Path) -> dict[str, int]:
    """Write one study for each decision; parameters are the shares of the simulated mixture.

    Args:
        directory: output of a run or of `opmix search`, local or a URI.
        file: the journal; one that is there is replaced.

    Returns:
        Name of each study and its number of trials.

    Raises:
        UserError: there is no decision, or the file cannot be written.
    """
    run = Storage(directory)
    places = [f"decisions/{name}" for name in run.names("decisions")]
    places = [place for place in places if run.exists(f"{place}/{TRIALS}")]
    if not places:
        raise UserError(
            "holds no decision", file=directory, remedy="name the output of a run that has decided"
        )
    part = file.with_name(f".{file.name}.part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = JournalStorage(JournalFileBackend(str(part)))
            written = {
                f"decision {place[-3:]}": _study(f"decision {place[-3:]}", run, place, storage)
                for place in places
            }
        os.replace(part, file)
    except OSError as error:
        raise UserError(
            f"cannot be written: {error.strerror}", file=file, remedy="name another --output"
        ) from None
    finally:
        part.unlink(missing_ok=True)
    return written


def _study(name: str, run: Storage, place: str, storage: JournalStorage) -> int:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name=name, storage=storage, direction="minimize")
    study.set_metric_names([METRIC])
    if run.exists(f"{place}/decision.json"):
        decision = read_record(run, f"{place}/decision.json", Decision)
        for key in ("step", "kept", "reason"):
            study.set_user_attr(key, getattr(decision, key))
    rows = read_records(run, f"{place}/{TRIALS}", TrialRow)
    study.add_trials([_trial(row) for row in rows])
    return len(rows)


def _trial(row: TrialRow) -> FrozenTrial:
    state = _STATES.get(row.status, TrialState.FAIL)
    value = row.objective if math.isfinite(row.objective) else None
    attributes = {"run": row.run, "status": row.status, "seconds": row.seconds}
    attributes |= {f"loss/{name}": loss for name, loss in row.losses.items() if math.isfinite(loss)}
    return create_trial(
        state=state,
        value=value if state is not TrialState.FAIL else None,
        params={name: min(1.0, max(0.0, share)) for name, share in row.ratios.items()},
        distributions={name: FloatDistribution(0.0, 1.0) for name in row.ratios},
        user_attrs=attributes,
        intermediate_values={} if value is None else {0: value},
    )
