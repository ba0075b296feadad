"""What is recorded of a run under which name, for TensorBoard always, for W&B, MLflow and Aim where they are named.

with tracking(config, storage, done) as tracked:
    tracked.row(row)

A run is their one trial. The names are stable, and docs/watching.md lists them.

Losses and gains are in nats per token, shares in [0, 1]; every value stands at a global step of the main run.
"""

from __future__ import annotations

import hashlib
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from opmix_ray.config import RunConfig, without_secrets
from opmix_ray.config.objective import Objective, bytes_per_token_of
from opmix_ray.errors import UserError, first_line
from opmix_ray.harmless import hidden, visible, without
from opmix_ray.storage import Storage

Scalars = dict[str, float]


def of_row(row: Mapping[str, Any], objective: Objective | Mapping[str, float]) -> Scalars:
    """Scalars of a row of metrics.jsonl.

    Args:
        row: of kind `train` or `evaluation`; others give nothing.
        objective: what is minimised; weights by set mean the weighted mean loss.
    """
    if row["kind"] == "train":
        found = {f"train/{name}": row[name] for name in ("loss", "learning_rate", "tokens_per_second")}
        total = sum(row["delivered"].values())
        return found | {
            f"delivered/{name}": count / total for name, count in row["delivered"].items() if total
        }
    if row["kind"] != "evaluation":
        return {}
    found = {
        f"eval/{kind}/{name}": value
        for kind, key in (
            ("loss", "losses"),
            ("perplexity", "perplexity"),
            ("bits_per_byte", "bits_per_byte"),
        )
        for name, value in row[key].items()
    }
    found["eval/objective"] = Objective.of(objective).at(row["losses"])
    return _finite(found)


def of_mixture(shares: Mapping[str, float]) -> Scalars:
    """Scalars of the mixture that comes into force."""
    return {f"mixture/{name}": share for name, share in shares.items()}


def of_decision(decision: Any) -> Scalars:
    """Scalars of a `Decision`."""
    found: Scalars = {
        "decision/changed": float(decision.kept == "proposal"),
        "decision/candidates": float(decision.trials),
        **{f"decision/proposal/{name}": share for name, share in decision.proposal.items()},
    }
    if decision.gain is not None:
        names = {"mean": "gain", "low": "gain_low", "high": "gain_high"}
        found |= {f"decision/{name}": float(decision.gain[key]) for key, name in names.items()}
    return _finite(found)


def of_costs(ledger: Mapping[str, Mapping[str, float]], overhead: float) -> Scalars:
    """Scalars of what was spent since the run began, by purpose and unit."""
    found = {
        f"cost/{purpose}/{unit}": float(amount)
        for purpose, units in ledger.items()
        for unit, amount in units.items()
        if amount
    }
    return found | {"cost/overhead": overhead}


def _finite(found: Scalars) -> Scalars:
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


CALLBACKS = {
    "wandb": ("wandb", "ray.air.integrations.wandb", "WandbLoggerCallback"),
    "mlflow": ("mlflow", "ray.air.integrations.mlflow", "MLflowLoggerCallback"),
    "aim": ("aim", "ray.tune.logger.aim", "AimLoggerCallback"),
}
_LOG = logging.getLogger(__name__)


def missing(name: str) -> UserError | None:
    """The error for a tracker whose package is not installed; None where it is."""
    package, _, _ = CALLBACKS[name]
    if find_spec(package) is not None:
        return None
    return UserError(
        f"needs the package {package}", key=f"watch.{name}", remedy=f"pip install 'opmix_ray[{name}]'"
    )


class Trackers:
    """The trackers that a configuration names; false where there are none.

    Args:
        config: the run.
        output: its directory or URI; the same output is the same run to a tracker that can go on.

    Raises:
        UserError: one cannot be started.
    """

    def __init__(self, config: RunConfig, output: str) -> None:
        self._callbacks: dict[str, Any] = {}
        asked = {name: getattr(config.watch, name) for name in CALLBACKS}
        self._options = {name: dict(options) for name, options in asked.items() if options is not None}
        if not self._options:
            return
        self._run = _Run(config, output)
        try:
            for name, options in self._options.items():
                self._callbacks[name] = self._start(name, options)
        except BaseException:
            self._run.remove()
            raise

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def _start(self, name: str, options: dict[str, Any]) -> Any:
        if (absent := missing(name)) is not None:
            raise absent
        _, module, kind = CALLBACKS[name]
        if name == "wandb":
            options = {"project": "opmix_ray", "resume": "allow"} | options
        if name == "mlflow":
            options.setdefault("experiment_name", "opmix_ray")
        try:
            callback = getattr(import_module(module), kind)(**options)
            callback.setup()
            callback.log_trial_start(self._run)
        except Exception as error:  # each package has errors of its own
            raise UserError(
                f"cannot be started: {without(first_line(error), options)}",
                key=f"watch.{name}",
                value=hidden(options),
                remedy="see docs/watching.md",
            ) from None
        return callback

    def record(self, step: int, scalars: Scalars) -> None:
        """Hand over values at a step; a tracker that fails is left out, the run goes on."""
        result = {"training_iteration": step, "timesteps_total": step, **scalars}
        self._each(lambda callback: callback.log_trial_result(step, self._run, dict(result)))

    def close(self, *, failed: bool) -> None:
        """End the trackers' runs, and wait for what they still have to send."""
        self._each(lambda callback: callback.log_trial_end(self._run, failed=failed))
        self._each(lambda callback: callback.on_experiment_end([self._run]))
        if self._options:
            self._run.remove()

    def _each(self, call: Callable[[Any], None]) -> None:
        for name, callback in list(self._callbacks.items()):
            try:
                call(callback)
            except Exception as error:  # watching must not end a run
                said = visible(without(first_line(error), self._options[name]))
                _LOG.warning("watch.%s is left out from here: %s", name, said)
                del self._callbacks[name]


class _Run:
    """What Ray's callbacks read of a trial."""

    def __init__(self, config: RunConfig, output: str) -> None:
        self._name = config.name
        self.trial_id = hashlib.blake2b(output.encode(), digest_size=8).hexdigest()
        self.experiment_dir_name = config.name
        self.local_path = self.local_experiment_path = tempfile.mkdtemp(prefix="opmix-watch-")
        self.path = output
        settings = without_secrets(config.model_dump(mode="json"))
        self.config = {key: str(value) for key, value in _flat(settings).items()}
        self.evaluated_params = self.config
        self.checkpoint = None

    def __str__(self) -> str:
        return self._name

    def init_local_path(self) -> None:
        """The directory is there already."""

    def remove(self) -> None:
        """Remove the directory that the callbacks may have used."""
        shutil.rmtree(self.local_path, ignore_errors=True)

    def get_ray_actor_ip(self) -> None:
        """A run has no actor of its own."""


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a configuration's settings, without those that are not set."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        elif value not in (None, []):
            found[f"{prefix}{key}"] = value
    return found


TENSORBOARD = "tensorboard"  # directory inside a run's output


class Tracking:
    """Records of one run.

    Args:
        config: its configuration.
        storage: its output; event files of an earlier attempt are replaced.
    """

    def __init__(self, config: RunConfig, storage: Storage) -> None:
        self._storage, self._config = storage, config
        storage.delete(TENSORBOARD)
        self._copied = not storage.is_local
        self._place = Path(
            tempfile.mkdtemp(prefix="opmix-tensorboard-") if self._copied else storage.path(TENSORBOARD)
        )
        self._place.mkdir(parents=True, exist_ok=True)
        # The writer behind SummaryWriter, without its queue and thread: what was recorded is in the file.
        self._writer = EventsWriter(str(self._place / "events"))
        self._trackers: Trackers | None = None
        self._seen: set[tuple[str, int]] = set()

    def replay(
        self, rows: Sequence[dict[str, Any]], mixtures: Sequence[dict[str, Any]], decisions: Sequence[Any]
    ) -> None:
        """Record what happened before this attempt; trackers know it already."""
        for row in rows:
            self.row(row)
        for entry in mixtures:
            self.mixture(entry["step"], entry["mixture"])
        for decision in decisions:
            self.decision(decision)

    def track(self, trackers: Trackers) -> None:
        """Hand everything from here on to these trackers too."""
        self._trackers = trackers

    def row(self, row: dict[str, Any]) -> None:
        """A row of metrics.jsonl; one that comes again after a worker's restart counts once."""
        key = (row["kind"], int(row["step"]))
        if key not in self._seen:
            self._seen.add(key)
            self._record(key[1], of_row(row, self._config.objective_of(bytes_per_token_of(row))))

    def mixture(self, step: int, shares: dict[str, float]) -> None:
        """A mixture came into force."""
        self._record(step, of_mixture(shares))

    def decision(self, decision: Any) -> None:
        """A decision was made."""
        self._record(decision.step, of_decision(decision))

    def costs(self, step: int, ledger: dict[str, dict[str, float]], overhead: float) -> None:
        """What was spent so far; a copy of the event files goes to a remote output."""
        self._record(step, of_costs(ledger, overhead))
        self._publish()

    def close(self, *, failed: bool = False) -> None:
        """Nothing more comes."""
        if self._trackers is not None:
            self._trackers.close(failed=failed)
        self._writer.close()
        self._publish()
        if self._copied:
            shutil.rmtree(self._place, ignore_errors=True)

    def _record(self, step: int, scalars: Scalars) -> None:
        for name, value in scalars.items():
            event = Event(wall_time=time.time(), step=step, summary=scalar(name, value))
            self._writer.write_event(event)
        self._writer.flush()
        if self._trackers is not None and scalars:
            self._trackers.record(step, scalars)

    def _publish(self) -> None:
        if self._copied:
            self._storage.upload(self._place, TENSORBOARD)


@contextmanager
def tracking(config: RunConfig, storage: Storage, done: dict[str, Any]) -> Iterator[Tracking]:
    """Records for the time of a `with`.

    Args:
        config: the run.
        storage: its output.
        done: arguments of `Tracking.replay`.

    Raises:
        UserError: a tracker cannot be started.
    """
    tracked = Tracking(config, storage)
    try:
        tracked.replay(**done)
        trackers = Trackers(config, storage.uri)
        if trackers:
            tracked.track(trackers)
        yield tracked
    except BaseException:
        tracked.close(failed=True)
        raise
    tracked.close()
