"""Numerics that know nothing of mixtures or laws: ridge, Gaussian processes, heavy tails; one BLAS thread around them.

    with one_thread():
        ...

Laws solve many small systems. Threads that wait for each other between two of them cost more than they do: twice the
processor time on an idle machine, minutes instead of seconds on a busy one (`benchmarks/threads.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import scipy.linalg  # noqa: F401  # has a BLAS of its own, which the controller must find
from threadpoolctl import ThreadpoolController


@contextmanager
def one_thread() -> Iterator[None]:
    """A context, or with `@one_thread()` a function, in which BLAS has one thread; as before when it ends."""
    with _controller().limit(limits=1, user_api="blas"):
        yield


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # looks through the process's libraries, so once


WORTH = 6.0  # seconds of work left that pay for more processes, which take two to come up
T = TypeVar("T")


def in_order(task: Callable[[int], T], count: int, step: Callable[[int, int], None] | None = None) -> list[T]:
    """`task(0)` to `task(count - 1)`, in as many processes as there are CPUs where that pays.

    Args:
        task: depends on its number alone, so that results are the same in one process and in many.
        count: at least 1.
        step: called with how many are done, and `count`.
    """
    import joblib  # takes .1 s

    told = step or (lambda done, total: None)
    told(0, count)
    began = time.monotonic()
    done = [task(0)]
    told(1, count)
    rest = range(1, count)
    processes = min(joblib.cpu_count(), len(rest))
    found: Iterable[T] = map(task, rest)
    if processes > 1 and len(rest) * (time.monotonic() - began) >= WORTH:
        parallel = joblib.Parallel(
            n_jobs=processes, return_as="generator", max_nbytes=None
        )  # needs no /dev/shm
        found = parallel(joblib.delayed(_alone)(task, number) for number in rest)
    for one in found:
        done.append(one)
        told(len(done), count)
    return done


def _alone(task: Callable[[int], T], number: int) -> T:
    with one_thread():
        return task(number)
