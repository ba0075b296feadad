"""Words for the time in which a run can do nothing because the cluster has yet to grow.

with waiting(demand, progress.message):
    ...  # tasks that ask for `demand`
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from opmix_ray.cluster.demand import Demand, machines_now, words

_FIRST, _EVERY, _AGAIN = 2.0, 2.0, 300.0  # seconds: before the first look, between looks, between messages


@contextmanager
def waiting(demand: Demand, message: Callable[[str], None]) -> Iterator[None]:
    """Say, for the time of a `with`, when the machines there are cannot hold what is asked for, and when they can.

    Args:
        demand: what is asked for inside.
        message: gets a line when waiting begins, every five minutes while it lasts, and when it is over.
    """
    done = threading.Event()
    thread = threading.Thread(target=_watch, args=(demand, message, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(5)  # it may be asking a cluster that does not answer any more


def _watch(demand: Demand, message: Callable[[str], None], done: threading.Event) -> None:
    began = said = 0.0
    pause = _FIRST
    while not done.wait(pause):
        pause = _EVERY
        try:
            machines = machines_now()
        except Exception:  # no answer now, or the connection is being closed: nothing to say about that
            continue
        now = time.monotonic()
        if demand.places(machines) == demand.count:
            if began:
                message(f"the machines are there after {now - began:.0f} s")
            began = said = 0.0
        elif not said or now - said >= _AGAIN:
            began, said = began or now, now
            message(_line(demand, len(machines), now - began))


def _line(demand: Demand, machines: int, seconds: float) -> str:
    each = words(demand.each)
    times = f"{demand.count} times {each}" if demand.count > 1 else f"{each} on one machine"
    since = f" (for {seconds / 60:.0f} min)" if seconds else ""
    return (
        f"waiting for the cluster to grow{since}: {demand.who} asks for {times}, "
        f"the machines there are ({machines}) have less"
    )
