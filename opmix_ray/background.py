"""Work that goes on in another thread while the main one trains or decides."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

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
