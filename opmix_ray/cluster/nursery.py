"""Workers of a Ray of our own, as copies of one process that has imported Torch and what else takes them seconds.

A worker that computes imports for some five seconds of a processor, and even a short run starts eight of them. Here one
process imports, beside the driver, and forks them; what was imported is also in memory only once.

Ray runs `python nursery.py SOCKET SCRIPT...` where it would run a worker's script (`py_executable` of its runtime
environments). That asks for a copy, and is the worker itself where nobody answers: before all is imported, or never.
Ray is imported by each copy, since it reads its environment when it is loaded. At the top of this file, which is run by
its path, stands the standard library alone.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any, NamedTuple

_SERVE = "--serve"
_MEMORY = "/proc/self/oom_score_adj"  # how soon a process is ended where memory runs out
_IMPORTED = ("pandas", "pyarrow.fs", "opmix_ray.model.base")  # what computes, and what Ray's libraries import


class Nursery(NamedTuple):
    """A process that makes copies, and its socket."""

    address: str
    process: Any

    def end(self) -> None:
        """End the process; its copies go on until Ray ends them."""
        import shutil

        self.process.kill()
        self.process.wait()
        shutil.rmtree(os.path.dirname(self.address), ignore_errors=True)


_ahead: list[Nursery] = []


def begin() -> Nursery | None:
    """Start a process that imports what workers need, then makes copies; None where that cannot be."""
    import subprocess
    import tempfile

    from opmix_ray.cluster.address import default_place, ray_place

    if _ahead:
        return _ahead.pop()
    if sys.platform != "linux":
        return None
    try:  # beside Ray's own: a socket's path must be short
        directory = tempfile.mkdtemp(prefix="opmix-", dir=(ray_place() or default_place()).parent)
    except OSError:
        return None
    address = os.path.join(directory, "nursery")
    command = [sys.executable, __file__, _SERVE, address, json.dumps(sys.path), str(os.getpid())]
    process = subprocess.Popen(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # a copy would lack the threads that BLAS starts at once
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the driver
    )
    return Nursery(address, process)


def is_wanted(config: Any) -> bool:
    """Whether a run starts a Ray of its own and computes on no GPU, which a copy may find closed to it."""
    from opmix_ray.cluster.address import address_of

    on_gpus = config.train.gpus_per_worker or config.probe.gpus or config.search.gpus
    return address_of(config) is None and not on_gpus


def begin_ahead(config: Any) -> None:
    """Start the process that the next `begin` gives, so that it imports while the driver does, if the run wants one.

    Raises:
        UserError: there is no place for Ray's files.
    """
    import atexit

    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return
    if is_wanted(config) and not _ahead and (begun := begin()) is not None:
        _ahead.append(begun)
        atexit.register(end_ahead)


def end_ahead() -> None:
    """End a process that nobody took."""
    while _ahead:
        _ahead.pop().end()


def asking(address: str) -> list[str]:
    """What to run in the place of a worker's python."""
    return [sys.executable, "-S", "-E", __file__, address]


def _ask(address: str, words: list[str]) -> None:
    """Have a copy run a script with its arguments, and stay as long as it does."""
    with open(_MEMORY) as file:
        given_up = file.read()
    asked = {
        "words": words,
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "given_up": given_up,
    }
    begun = b""
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(address)
            line.sendall(json.dumps(asked).encode())
            line.shutdown(socket.SHUT_WR)
            begun = line.recv(1)
            while begun and line.recv(1):
                pass
    except OSError:
        pass
    if not begun:
        os.execv(sys.executable, [sys.executable, *words])


def _serve(address: str, path: list[str], driver: int) -> None:
    """Import what workers need, then make copies until the driver has ended."""
    import gc
    import importlib
    import socketserver

    fresh = sys.path[1:]
    sys.path[:] = path
    for name in _IMPORTED:
        importlib.import_module(name)

    class Copies(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
        max_children = 1 << 20
        request_queue_size = 128

        def service_actions(self) -> None:
            super().service_actions()
            if os.getppid() != driver:  # which removes the socket where it lives to do so
                os.unlink(address)
                os.rmdir(os.path.dirname(address))
                os._exit(0)

    class Copy(socketserver.StreamRequestHandler):
        server: Copies

        def handle(self) -> None:
            self.server.socket.close()
            _become(**json.load(self.rfile), path=fresh, begin=lambda: self.wfile.write(b"1"))

    gc.freeze()  # a collection would write to what is shared
    with Copies(address, Copy) as server:
        server.serve_forever()


def _become(
    words: list[str],
    environment: dict[str, str],
    directory: str,
    niceness: int,
    given_up: str,
    path: list[str],
    begin: Any,
) -> None:
    """Be what a python would be that was started to run a script, also in what Ray does to its processes."""
    import atexit
    import runpy

    import numpy as np

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    os.setsid()  # Ray ends a worker with all of its process group
    os.setpriority(os.PRIO_PROCESS, 0, niceness)
    with open(_MEMORY, "w") as file:
        file.write(given_up)
    np.random.seed()  # noqa: NPY002 - nobody's generator but the one that all copies have in common
    sys.argv, sys.path[:] = words, [os.path.dirname(words[0]), *path]
    begin()
    try:
        runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a copy's end runs nothing else


if __name__ == "__main__":
    if sys.argv[1] == _SERVE:
        _serve(sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]))
    else:
        _ask(sys.argv[1], sys.argv[2:])
