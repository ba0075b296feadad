"""Numerics that know nothing of mixtures or laws: ridge, Gaussian processes, heavy tails; one BLAS thread around them.

    with one_thread():
        ...

Laws solve many small systems. Threads that wait for each other between two of them cost more than they do: twice the
processor time on an idle machine, minutes instead of seconds on a busy one (`benchmarks/threads.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

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
