"""SIGTERM to a worker: first a checkpoint, then the end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from opmix_ray.train import workers
from opmix_ray.train.workers import Notice, listen


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """What would end this process; it writes down the signal instead. The last resort would come in ten minutes."""
    signals: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    monkeypatch.setattr(workers, "_told", threading.Event())
    monkeypatch.setattr(workers, "_GRACE", 600.0)
    yield signals
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.cancel()
    signal.signal(signal.SIGTERM, before)


def wait_for(signals: list[int], count: int) -> None:
    done = threading.Event()
    for _ in range(6000):
        if len(signals) >= count:
            return
        done.wait(0.01)
    raise AssertionError(f"{signals} after a minute")


def test_the_first_sigterm_asks_and_the_second_ends(ended: list[int]) -> None:
    listen()
    assert not Notice().told()
    os.kill(os.getpid(), signal.SIGTERM)
    assert Notice().told()
    assert ended == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert ended == [signal.SIGTERM]


@pytest.mark.seconds
def test_a_process_whose_checkpoint_does_not_come_ends_all_the_same(
    ended: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_GRACE", 0.2)
    listen()
    os.kill(os.getpid(), signal.SIGTERM)
    wait_for(ended, 1)
