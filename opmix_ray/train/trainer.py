"""Run one segment with Ray Train, pass its rows on while it runs, and find it again after a crash."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.runtime_context import RuntimeContext
from ray.train import CheckpointConfig, ControllerError, FailureConfig, Result, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

from opmix_ray.errors import user_errors
from opmix_ray.node import WATCHER, Reporter, here
from opmix_ray.output.lock import opened
from opmix_ray.output.state import TRAIN
from opmix_ray.signals import StopSignals
from opmix_ray.train.checkpoint import TrainState, read_state, recover
from opmix_ray.train.loop import Segment, train_segment
from opmix_ray.train.workers import ListeningConfig

OnEvent = Callable[[str, dict[str, Any]], None]
_POLL = 0.3  # seconds between two looks at what the workers reported
# A segment ends with one report; at Ray's default interval each costs about two seconds.
_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
}
_LOGS = "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING"
# Actors of Train's that every segment would start: one hands out data sets of Ray Data, of which we have none; another
# looks after what a killed controller leaves, which a Ray of our own does not outlive.
_NO_DATA_SETS, _CLEANER = "DatasetsCallback", "PlacementGroupCleanerCallback"


class _NoGrowth(FixedScalingPolicy):  # type: ignore[misc]
    """Asks nobody for machines, which costs another actor: a Ray of our own is this machine."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Begin without a client of the autoscaler."""

    def _maybe_send_resource_request(self) -> None:
        pass


class _Trainer(TorchTrainer):
    """Ray Train's own, with fewer processes."""

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        """By an actor, but where a Ray of our own ends with this process: an actor takes two seconds to start.

        In an object store, where another driver may take over, a process that was frozen must not delete when it wakes.
        """
        stored = self.run_config.storage_filesystem is not None
        if not _on_own_ray() or stored or _in_a_loop():
            return super()._initialize_and_run_controller(**arguments)  # type: ignore[misc]
        with _without_an_actor(), contextlib.closing(asyncio.new_event_loop()) as loop:
            arguments["scaling_policy"] = _NoGrowth(self.scaling_config)  # type: ignore[arg-type]
            controller = TrainController(**arguments)
            loop.run_until_complete(controller.run())  # type: ignore[no-untyped-call]
            return controller.get_result()

    def _create_default_callbacks(self) -> list[Any]:
        unused = {_NO_DATA_SETS} | ({_CLEANER} if _on_own_ray() else set())
        found = super()._create_default_callbacks()  # type: ignore[misc]
        return [each for each in found if type(each).__name__ not in unused]


def _on_own_ray() -> bool:
    """Whether Ray ends with this process, so that nobody takes its machine away."""
    return os.environ.get(WATCHER) == "0"


def _in_a_loop() -> bool:
    """Whether this thread runs an event loop already, as a notebook's does."""
    with contextlib.suppress(RuntimeError):
        return asyncio.get_running_loop() is not None
    return False


@contextmanager
def _without_an_actor() -> Iterator[None]:
    """Let a controller that is no actor ask for the handle of its actor, and log nothing to this process's terminal.

    It gives the handle to the workers, who would ask it for all checkpoints that were reported; ours do not. Errors
    that it logs it also raises.
    """
    asked, logger = RuntimeContext.current_actor, logging.getLogger("ray.train")
    level, before = logger.level, os.environ.get(_LOGS)
    os.environ[_LOGS] = "0"
    RuntimeContext.current_actor = property(lambda self: None)  # type: ignore[assignment, method-assign]
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        RuntimeContext.current_actor = asked  # type: ignore[method-assign]
        logger.setLevel(level)
        if before is None:
            del os.environ[_LOGS]
        else:
            os.environ[_LOGS] = before


@dataclass(frozen=True)
class SegmentResult:
    """A segment's end: its checkpoint's directory inside the run's output, and its state."""

    checkpoint: str
    state: TrainState


def run_segment(segment: Segment, on_event: OnEvent) -> SegmentResult:
    """Train a segment, or what a crash left of it.

    Args:
        segment: what to train.
        on_event: called with `start` (`segment`, `step` and the `rows` known so far) when the workers begin or
            begin again, with `row` for every row, and with `note` (`text`) for what a person should know.

    Raises:
        UserError: the loss diverged, or something in the input is wrong.
        RuntimeError: the workers failed more often than `train.max_failures`.
    """
    left = segment.train.max_failures
    while True:
        try:
            return _trained(segment, on_event)
        except ControllerError as error:
            # A machine that goes while Train starts workers or asks for their state is no worker's failure to Train,
            # which then gives up at once.
            if left == 0 or not isinstance(error.controller_failure, RayActorError):
                raise
            left -= 1


def _trained(segment: Segment, on_event: OnEvent) -> SegmentResult:
    """One call of Train, which goes on from the segment's last checkpoint."""
    train = segment.train
    storage = opened(segment.output, segment.writer)
    filesystem, root = storage.filesystem
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    saved = recover(storage, f"{TRAIN}/{segment.name}", lambda text: on_event("note", {"text": text}))
    if saved is not None:
        segment = replace(segment, checkpoint=saved)
    reporter = Reporter.options(scheduling_strategy=here()).remote()  # type: ignore[attr-defined]
    resources = {"CPU": train.cpus_per_worker, **train.resources}
    if train.gpus_per_worker:
        resources["GPU"] = train.gpus_per_worker
    trainer = _Trainer(
        train_segment,
        # as a reference, which Train's controller does not open: what a segment is made of takes seconds to import
        train_loop_config={"segment": ray.put(segment), "reporter": reporter},
        torch_config=ListeningConfig(),
        scaling_config=ScalingConfig(
            num_workers=train.workers,
            use_gpu=train.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=segment.name,
            storage_path=f"{root}/{TRAIN}",
            storage_filesystem=None if storage.is_local else filesystem,
            failure_config=FailureConfig(max_failures=train.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    with _Relay(reporter, on_event), _own_interrupt():
        try:
            result = trainer.fit()
        except Exception as error:
            for found in user_errors(error):
                raise found from error
            raise
        failed = _noted(reporter)
        if failed is not None:
            raise failed
    if result.checkpoint is None and saved is not None:  # what was saved was the segment's end
        with storage.local(saved) as place:
            return SegmentResult(saved, read_state(place))
    if result.checkpoint is None:
        raise RuntimeError(f"segment {segment.name} ended without a checkpoint")
    relative = result.checkpoint.path[len(root) :].lstrip("/")
    with result.checkpoint.as_directory() as directory:
        state = read_state(Path(directory))
    return SegmentResult(relative, state)


def _noted(reporter: Any) -> Exception | None:
    """The error that ended the workers' loop without ending the workers."""
    try:
        found: Exception | None = ray.get(reporter.failed.remote(), timeout=30)
    except ray.exceptions.RayError:
        return None
    return found


@contextmanager
def _own_interrupt() -> Iterator[None]:
    """Let Ctrl-C end the run at any moment of a segment.

    Train puts a handler of its own in place, does not take it away, and forgets a signal that comes when its
    controller is already done.
    """
    before, watch = signal.getsignal(signal.SIGINT), StopSignals()
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
        stopped = watch.stopped()
        watch.close()
    if stopped == signal.SIGINT:
        raise KeyboardInterrupt


class _Relay:
    """Hands the reporter's events to the driver while `fit` blocks; the last ones when it is done."""

    def __init__(self, reporter: Any, on_event: OnEvent) -> None:
        self._reporter = reporter
        self._on_event = on_event
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._error: BaseException | None = None

    def __enter__(self) -> _Relay:
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._done.set()
        self._thread.join()
        ray.kill(self._reporter)
        if self._error is not None and error is None:
            raise self._error

    def _poll(self) -> None:
        while True:
            last = self._done.wait(_POLL)
            try:
                for event in ray.get(self._reporter.drain.remote(), timeout=30):
                    self._on_event(*event)
            except ray.exceptions.RayError:
                pass  # the reporter's machine is gone; the rows are in the checkpoint as well
            except BaseException as error:
                self._error = error
                return
            if last:
                return
