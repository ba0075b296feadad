"""Runs side by side: each a command of its own, all on one cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import ray

from opmix_ray.compare.plan import ComparedRun
from opmix_ray.config import dump_config
from opmix_ray.errors import UserError
from opmix_ray.output.state import RESULT
from opmix_ray.storage import Storage


class ParallelRuns:
    """Commands that join the cluster this process is connected to; whoever leaves the `with` early ends them.

    A command that is ended writes a checkpoint first, and goes on from there when the comparison is begun again.

    Args:
        storage: of the comparison.
        most: commands at a time.
    """

    def __init__(self, storage: Storage, most: int) -> None:
        self._storage = storage
        self._environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        self._alive: set[subprocess.Popen[str]] = set()
        self._lock, self._over = threading.Lock(), False
        self.pool = ThreadPoolExecutor(most)

    def __enter__(self) -> ParallelRuns:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._over = True
            for process in self._alive:
                process.terminate()
        self.pool.shutdown(cancel_futures=True)

    def run(self, entry: ComparedRun) -> dict[str, Any]:
        """One run to its end; the content of its result.json.

        Raises:
            UserError: it failed; with the last line that it said.
        """
        storage, file = self._storage.child(entry.place), f"{entry.place}.yaml"
        self._storage.write_text(file, dump_config(entry.config))
        with _with_secrets(entry, self._storage.path(file)) as readable:
            return self._run(entry, storage, ["run", readable, "--output", storage.uri, "--json"])

    def _run(self, entry: ComparedRun, storage: Storage, words: list[str]) -> dict[str, Any]:
        with self._lock:
            if self._over:
                raise UserError("was not begun", key=f"{entry.strategy}, seed {entry.seed}")
            process = subprocess.Popen(
                [sys.executable, "-m", "opmix_ray", *words], env=self._environment,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            self._alive.add(process)
        _, errors = process.communicate()
        with self._lock:
            self._alive.discard(process)
        if process.returncode:
            last = (errors.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            raise UserError(f"failed: {last}", key=f"{entry.strategy}, seed {entry.seed}")
        found: dict[str, Any] = storage.read_json(RESULT)
        return found


@contextmanager
def _with_secrets(entry: ComparedRun, written: str) -> Iterator[str]:
    """A file with the whole configuration: the one that was written or, where secrets were left out of that, one that
    its owner alone may read and that goes with the end of the run."""
    whole = dump_config(entry.config, secrets=True)
    if whole == dump_config(entry.config):
        yield written
        return
    with tempfile.NamedTemporaryFile("w", prefix="opmix-", suffix=".yaml", encoding="utf-8") as file:
        file.write(whole)
        file.flush()
        yield file.name
