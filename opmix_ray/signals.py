"""Which signals came, whoever handles them, and work in other threads than the main one, which signals reach.

Ray puts handlers of its own in place.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Generic, TypeVar


class StopSignals:
    """Remembers SIGINT and SIGTERM from its making to `close`; in threads other than the main one it sees nothing.

    Watches may be nested: what an inner one saw is passed on to the outer one.
    """

    def __init__(self) -> None:
        self._pair: tuple[socket.socket, socket.socket] | None = None
        self._seen = b""
        if threading.current_thread() is threading.main_thread():
            self._pair = socket.socketpair()
            for end in self._pair:
                end.setblocking(False)
            self._outer = signal.set_wakeup_fd(self._pair[1].fileno(), warn_on_full_buffer=False)

    def stopped(self) -> int:
        """SIGINT or SIGTERM, whichever came first; else 0."""
        if self._pair is not None:
            with contextlib.suppress(BlockingIOError):
                self._seen += self._pair[0].recv(4096)
        return next((number for number in self._seen if number in (signal.SIGINT, signal.SIGTERM)), 0)

    def close(self) -> None:
        """Stop watching."""
        if self._pair is None:
            return
        self.stopped()
        signal.set_wakeup_fd(self._outer, warn_on_full_buffer=False)
        if self._outer >= 0 and self._seen:
            with contextlib.suppress(OSError):
                os.write(self._outer, self._seen)
        for end in self._pair:
            end.close()
        self._pair = None


T = TypeVar("T")


class Background(Generic[T]):
    """A call in a thread of its own; its result, or its error, comes at the end.

    The main thread keeps what must have it: signals, Ray Train, and the law and Optuna of a search.

    Args:
        call: what to do.
    """

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._results.append(self._call())
        except BaseException as error:
            self._error = error

    def result(self) -> T:
        """Wait for the end of the call.

        Raises:
            BaseException: what the call raised.
        """
        while self._thread.is_alive():
            self.wait(0.5)  # with a limit, so that Ctrl-C is heard
        if self._error is not None:
            raise self._error
        return self._results[0]

    def wait(self, seconds: float) -> None:
        """Wait for the end of the call, but not longer than so many seconds."""
        self._thread.join(seconds)
