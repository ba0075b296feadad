"""Whether Ray's head still answers. Without it Ray ends this process by itself, where nothing can be caught."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from opmix_ray.errors import GO_ON

EVERY = 2.0  # seconds between two looks
PATIENCE = 3  # looks in vain before it is said


@contextmanager
def pulse(address: str, every: float = EVERY) -> Iterator[None]:
    """Say once on stderr that the head does not answer any more, and how to go on, while a `with` lasts.

    Args:
        address: `host:port` of the head.
        every: seconds between two looks.
    """
    over = threading.Event()
    thread = threading.Thread(target=_look, args=(address, every, over), name="opmix-pulse", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=1)


def _look(address: str, every: float, over: threading.Event) -> None:
    missed, said = 0, False
    while not over.wait(every):
        missed = 0 if _answers(address) else missed + 1
        if missed == 0:
            said = False
        elif missed >= PATIENCE and not said and not over.is_set():
            said = True
            print(
                f"error: Ray's head at {address} does not answer any more; if it does not come back, the run ends: "
                f"start Ray again, and {GO_ON}",
                file=sys.stderr,
                flush=True,
            )


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
            return True
    except OSError:
        return False
    except ValueError:
        return True  # an address that is none: nothing is known
