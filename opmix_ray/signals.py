"""Which signals came, whoever handles them: Ray puts handlers of its own in place."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading


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
