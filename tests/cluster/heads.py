"""A Ray head of its own, started as a user starts one: `ray start --head`, with token authentication."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from tests.support import PATIENCE, ROOT


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Head:
    """A head that is ended by its processes' ids, never by `ray stop`.

    Args:
        cpus: of the head itself.
        dashboard: whether jobs can be submitted.
        autoscaling: node types and limits for Ray's fake provider, if it is to grow.
    """

    def __init__(self, *, cpus: int, dashboard: bool, autoscaling: dict[str, Any] | None = None) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="opmix-head-", dir="/tmp"))  # sockets need a short path
        port, http, agent = free_ports(3)
        self._host = ray.util.get_node_ip_address()
        self.address, self.dashboard = f"{self._host}:{port}", f"http://127.0.0.1:{http}"
        token = self.directory / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self.environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        }
        self.environment.pop("RAY_ADDRESS", None)
        words = [
            "start", "--head", "--block", f"--port={port}", f"--num-cpus={cpus}",
            f"--include-dashboard={str(dashboard).lower()}", f"--dashboard-port={http}", "--disable-usage-stats",
            f"--dashboard-agent-listen-port={agent}", f"--temp-dir={self.directory}/ray",
            "--object-store-memory=200000000",
        ]  # fmt: skip
        if autoscaling is not None:
            file = self.directory / "cluster.json"
            file.write_text(json.dumps(_fake(autoscaling, self.address)))
            words.append(f"--autoscaling-config={file}")
            self.environment |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        self.log = self.directory / "head.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ray_command(*words), stdout=log, stderr=subprocess.STDOUT, env=self.environment, start_new_session=True
            )  # fmt: skip
        self._wait(self._host, port)
        if dashboard:
            self._wait("127.0.0.1", http)

    def _wait(self, host: str, port: int) -> None:
        deadline = time.monotonic() + 60
        while True:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            with suppress(OSError), socket.create_connection((host, port), timeout=1):
                return
            time.sleep(0.2)

    def run(self, *words: str, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """A command in the head's environment, in the checkout's root."""
        return subprocess.run(
            words,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=self.environment,
            timeout=timeout,
            check=False,
        )

    def close(self) -> None:
        """End every process that works in the head's directory."""
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        for pid in _naming(str(self.directory)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def ray_command(*words: str) -> list[str]:
    """Ray's command line with this Python."""
    return [sys.executable, "-m", "ray.scripts.scripts", *words]


def _naming(directory: str) -> list[int]:
    """Processes whose command line or environment names a directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if directory.encode() in (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


def _fake(autoscaling: dict[str, Any], address: str) -> dict[str, Any]:
    """A whole configuration for Ray's fake provider, whose machines are processes on this one."""
    return {
        "cluster_name": "fake",
        "provider": {
            "type": "fake_multinode", "gcs_address": address,
            "disable_node_updaters": True, "disable_launch_config_check": True,
            "use_node_id_as_ip": True,  # all machines have one address, by which they would be taken for one
        },
        "head_node_type": "ray.head.default",
        "upscaling_speed": 4.0,
        "auth": {}, "docker": {}, "file_mounts": {}, "cluster_synced_files": [], "rsync_exclude": [],
        "rsync_filter": [], "file_mounts_sync_continuously": False, "initialization_commands": [],
        "setup_commands": [], "head_setup_commands": [], "worker_setup_commands": [],
        "head_start_ray_commands": [], "worker_start_ray_commands": [],
        **autoscaling,
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            **autoscaling["available_node_types"],
        },
    }  # fmt: skip
