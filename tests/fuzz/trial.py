"""One damaged input: read, refused in one line, or neither, within limits on memory and time."""

from __future__ import annotations

import resource
import signal
import traceback
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from opmix_ray.errors import UserError, UserErrors
from opmix_ray.harmless import visible
from tests.fuzz.feeds import Feed

SECONDS = 60  # of one input, on a machine that does other things too


@dataclass(frozen=True)
class Outcome:
    """What became of an input: `read`, `refused`, or `unclear` with what was said instead."""

    kind: Literal["read", "refused", "unclear"]
    said: str = ""


def tried(feed: Feed, rng: Random, directory: Path) -> Outcome:
    """Damage a file and read it."""
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    try:
        feed(rng, directory)
    except UserError as error:
        lines = [str(each) for each in (error.errors if isinstance(error, UserErrors) else [error])]
        wrong = [line for line in lines if "\n" in line or visible(line) != line or not line.strip()]
        return (
            Outcome("unclear", f"not one plain line: {wrong[0]!r}") if wrong else Outcome("refused", lines[0])
        )
    except Exception:  # whatever it is, it is not clear
        return Outcome("unclear", traceback.format_exc(limit=-4))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return Outcome("read")


def limit_memory(more: int) -> None:
    """Let this process have so many bytes of address space beside those that it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"took more than {SECONDS} s")
