"""`opmix doctor`: what this machine and its packages are like, what will be slow, and why. Starts no Ray."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

from opmix_ray.cluster.address import LONGEST, check_address, default_place, ray_place
from opmix_ray.config import DataConfig
from opmix_ray.errors import UserError
from opmix_ray.paths import existing
from opmix_ray.version import __version__

State = Literal["ok", "slow", "wrong", "-"]
GIB = 1 << 30
LEAST_DISK, LEAST_MEMORY = 10 * GIB, 4 * GIB
LEAST_FILES = 4096  # open at a time; Ray's own advice is 65536
SHARED = 0.3  # of the memory, which is what Ray's object store takes
SHARED_PLACE = Path("/dev/shm")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([\w-]+)['\"]")


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and what to do about it.

    Args:
        state: `ok`; `slow`: works, but will take longer than it has to; `wrong`: will not work; `-`: for the record.
    """

    what: str
    found: str
    state: State = "ok"
    advice: str = ""

    def to_dict(self) -> dict[str, str]:
        """As a row of a table."""
        return asdict(self)


def examine(address: str | None = None) -> list[Finding]:
    """Look at everything.

    Args:
        address: of Ray; None: RAY_ADDRESS.

    Raises:
        UserError: `address` is not an address.
    """
    return [*_versions(), *_ray(address), *_processors(), *_gpus(), *_memory(), *_places(), *_limits()]


def _versions() -> Iterator[Finding]:
    yield Finding("opmix_ray", __version__, "-")
    yield Finding("python", platform.python_version(), "ok" if sys.version_info >= (3, 11) else "wrong")
    seen = set()
    for text in requires("opmix_ray") or []:
        wanted = Requirement(text)
        extra = _EXTRA.search(str(wanted.marker or ""))
        if wanted.name in seen or (extra and extra[1] in ("dev", "docs")):
            continue
        seen.add(wanted.name)
        command = f"pip install '{wanted.name}{wanted.specifier}'"
        try:
            there = version(wanted.name)
        except PackageNotFoundError:
            if extra is None:
                yield Finding(wanted.name, "not installed", "wrong", command)
            continue
        if wanted.specifier.contains(there, prereleases=True):
            yield Finding(wanted.name, there)
        else:
            yield Finding(wanted.name, there, "wrong", command)


def _ray(address: str | None) -> Iterator[Finding]:

    named = address or os.environ.get("RAY_ADDRESS")
    if named in (None, "", "local"):
        yield Finding("ray address", "none: a run starts a Ray of its own on this machine")
        return
    try:
        check_address(str(named), 5.0)
    except UserError as error:
        if address is not None and error.problem == "is not an address":
            raise
        yield Finding("ray address", str(named), "wrong", f"{error.problem}; {error.remedy}")
        return
    yield Finding("ray address", f"{named} answers")


def _processors() -> Iterator[Finding]:
    import torch

    cpus, usable = os.cpu_count() or 1, usable_cpus()
    if usable < cpus:
        yield Finding(
            "cpus", f"{usable} of {cpus} may be used", "slow",
            f"set cluster.num_cpus: {max(1, int(usable))}, or more processes than that take turns",
        )  # fmt: skip
    else:
        yield Finding("cpus", str(cpus))
    load = os.getloadavg()[0]
    if load > 0.5 * cpus:
        yield Finding(
            "load", f"{load:.1f} on {cpus} CPUs", "slow", "other programs work here: expect less speed"
        )
    if not torch.cuda.is_available():
        yield Finding("matrix product", f"{_product_speed():.0f} GFLOP/s in float32 on the CPU", "-")
        if not _bfloat16():
            yield Finding(
                "bfloat16", "this CPU has no instructions for it", "slow",
                "compare with model.autocast: false, which computes in float32",
            )  # fmt: skip


def usable_cpus() -> float:
    """CPUs that this process may use: by its affinity, and by its control group's quota."""
    usable = (
        float(len(os.sched_getaffinity(0)))
        if hasattr(os, "sched_getaffinity")
        else float(os.cpu_count() or 1)
    )
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit():
        usable = min(usable, int(quota[0]) / int(quota[1]))
    return usable


def _product_speed(size: int = 768) -> float:
    """GFLOP/s of a square matrix product in float32."""
    import torch

    matrix = torch.rand(size, size)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best / 1e9


def _bfloat16() -> bool:
    """Whether a CPU has instructions for bfloat16; True where that cannot be known."""
    text = _read("/proc/cpuinfo")
    return not text or any(flag in text for flag in ("avx512_bf16", "amx_bf16", "bf16"))


def _gpus() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi") is not None and torch.version.cuda is None:
            yield Finding(
                "gpus", "this PyTorch has no CUDA", "wrong", "install a PyTorch with CUDA (pytorch.org)"
            )
        else:
            yield Finding(
                "gpus", "none", "slow", "models above some ten million weights need one, here or on a cluster"
            )
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found = f"{torch.cuda.get_device_name(index)}, {free / GIB:.0f} of {total / GIB:.0f} GiB free"
        if free < 0.9 * total:
            yield Finding(f"gpu {index}", found, "slow", "another program holds some of its memory")
        else:
            yield Finding(f"gpu {index}", found)


def _memory() -> Iterator[Finding]:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    limited = limit.isdigit() and int(limit) < total
    total = int(limit) if limited else total
    found = f"{total / GIB:.1f} GiB" + (" (limit of the container)" if limited else "")
    if total < LEAST_MEMORY:
        yield Finding("memory", found, "slow", "Ray alone takes about 1.5 GiB")
    else:
        yield Finding("memory", found)
    if SHARED_PLACE.is_dir():
        size = shutil.disk_usage(SHARED_PLACE).total
        found = f"{size / GIB:.1f} GiB in {SHARED_PLACE}"
        if size < SHARED * total:
            option = f"--shm-size={SHARED * total / GIB:.0f}g"
            advice = f"Ray's objects go to the disk instead; start the container with {option}"
            yield Finding("shared memory", found, "slow", advice)
        else:
            yield Finding("shared memory", found)


def _places() -> Iterator[Finding]:
    cache = Path(DataConfig.model_fields["cache"].default).expanduser()
    files = default_place()
    try:
        shorter = ray_place()
    except UserError as error:
        yield Finding("ray's files", f"{files} {error.problem}", "wrong", str(error.remedy))
        shorter = None
    if shorter is not None:
        found = f"in {shorter}: sockets in {files} would have longer paths than the {LONGEST} bytes there are"
        yield Finding("ray's sockets", found)
    places = {"results (here)": Path.cwd(), "data cache": cache, "ray's files": shorter or files}
    for what, place in places.items():
        there = existing(place)
        usage = shutil.disk_usage(there)
        found = f"{usage.free / GIB:.1f} GiB free in {place}"
        if not os.access(there, os.W_OK):
            yield Finding(
                what,
                f"{place} may not be written to",
                "wrong",
                "name another place, or change its permissions",
            )
        elif usage.free < LEAST_DISK or usage.free < 0.05 * usage.total:
            yield Finding(
                what, found, "slow", "Ray stops writing objects to a disk that is 95 % full: make room"
            )
        else:
            yield Finding(what, found)


def _limits() -> Iterator[Finding]:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < LEAST_FILES:
        yield Finding("open files", str(files), "wrong", "ulimit -n 65536 before Ray starts")
    else:
        yield Finding("open files", str(files))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def summary(findings: list[Finding]) -> dict[str, Any]:
    """Everything for a program: the findings, and how many of each state."""
    states = [finding.state for finding in findings]
    return {
        "wrong": states.count("wrong"),
        "slow": states.count("slow"),
        "findings": [finding.to_dict() for finding in findings],
    }
