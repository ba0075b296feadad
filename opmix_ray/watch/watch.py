"""Hands what happens in a run to TensorBoard and to the trackers that the configuration names."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from opmix_ray.config import RunConfig
from opmix_ray.config.objective import bytes_per_token_of
from opmix_ray.storage import Storage
from opmix_ray.watch.trackers import Scalars, Trackers, of_costs, of_decision, of_mixture, of_row

TENSORBOARD = "tensorboard"  # directory inside a run's output


class Watch:
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
def watching(config: RunConfig, storage: Storage, done: dict[str, Any]) -> Iterator[Watch]:
    """Records for the time of a `with`.

    Args:
        config: the run.
        storage: its output.
        done: arguments of `Watch.replay`.

    Raises:
        UserError: a tracker cannot be started.
    """
    watch = Watch(config, storage)
    try:
        watch.replay(**done)
        trackers = Trackers(config, storage.uri)
        if trackers:
            watch.track(trackers)
        yield watch
    except BaseException:
        watch.close(failed=True)
        raise
    watch.close()
