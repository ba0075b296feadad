"""Notices that training must stop soon: a spot machine's last minutes, `ray drain-node`, or SIGTERM to one worker."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import ray.train
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

_LOOK = 1.0  # seconds between two looks
_GRACE = 25.0  # seconds for a checkpoint after SIGTERM; Kubernetes gives 30 before SIGKILL

_told = threading.Event()  # this process got SIGTERM


class ToldToEndError(Exception):
    """Ends a worker whose process got SIGTERM, after its checkpoint; all workers then begin again from there."""


class Notice:
    """Tells the workers of a segment, all in the same step, that a checkpoint is due before one of them goes.

    One look is an exchange between all workers, so rank 0 says when the next is due, in an exchange that every step
    has anyway; there each worker also says whether it was told to end.
    """

    def __init__(self) -> None:
        self._looked = time.monotonic()
        self._going: set[str] = set()  # machines that were told to go
        self.pending = False  # one of them was, or a worker, and no checkpoint was written since

    def due(self, rank: int) -> bool:
        """Whether rank 0 wants to look; always false on the others."""
        return rank == 0 and time.monotonic() - self._looked > _LOOK

    def look(self) -> None:
        """See whether a machine of this segment was told to go; to be called by all workers together."""
        self._looked = time.monotonic()
        info = getattr(ray.train, "get_preemption_info", None)  # Ray before 2.60 has none
        found = info() if info is not None else None
        going = set() if found is None else set(found.preempted_node_ids)
        self.pending = self.pending or not going <= self._going
        self._going |= going

    def told(self) -> bool:
        """Whether this worker's process got SIGTERM."""
        return _told.is_set()

    def leave(self, rank: int) -> None:
        """End this worker once Ray Train's controller knows the checkpoint that was reported last.

        Raises:
            ToldToEndError: always.
        """
        known = getattr(ray.train, "get_all_reported_checkpoints", None)
        if known is not None:
            known(ray.train.CheckpointConsistencyMode.COMMITTED, timeout_s=_GRACE)
        raise ToldToEndError(f"the worker of rank {rank} got SIGTERM and ended after a checkpoint")


class ListeningConfig(TorchConfig):
    """Torch's set-up of workers, which then listen for SIGTERM; their main threads do, so training itself cannot."""

    @property
    def backend_cls(self) -> Any:
        """What Ray Train sets workers up with."""
        return _Listening


class _Listening(_TorchBackend):
    def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
        super().on_training_start(worker_group, backend_config)
        worker_group.execute(listen)


def listen() -> None:
    """Let SIGTERM ask for a checkpoint before it ends this process; to be called in the main thread.

    A second SIGTERM ends the process as the first one would have done, and so does a checkpoint that does not come.
    """
    before = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
        _told.set()
        last = threading.Timer(_GRACE, os.kill, (os.getpid(), signal.SIGTERM))
        last.daemon = True
        last.start()

    signal.signal(signal.SIGTERM, handle)
