"""A run's decisions as Optuna studies in one journal file, for optuna-dashboard and Optuna's own plots."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path

import optuna
from optuna.distributions import FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from opmix_ray.decision.rule import Decision
from opmix_ray.errors import UserError
from opmix_ray.record import read_record, read_records
from opmix_ray.storage import Storage
from opmix_ray.trials.rows import TRIALS, TrialRow

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
