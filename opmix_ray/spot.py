"""Tells Ray when a cloud wants a spot machine back: `python -m opmix_ray.spot &` on each machine.

Ray then gives the machine no more work, and the main run writes a checkpoint before it goes. On a machine that is never
taken back it does nothing. It asks the metadata services of AWS (EC2 instance metadata, version 2) and Google Cloud.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime

AWS, GOOGLE = "http://169.254.169.254", "http://metadata.google.internal"
_EVERY, _TIMEOUT = 5.0, 2.0  # seconds
_GOOGLE_WARNS = 30.0  # seconds before a machine goes


def aws_notice(base: str = AWS) -> float | None:
    """Seconds until this EC2 machine is taken back; None: no notice, or not such a machine."""
    token = _fetch(f"{base}/latest/api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": "300"})
    if token is None:
        return None
    found = _fetch(
        f"{base}/latest/meta-data/spot/instance-action", "GET", {"X-aws-ec2-metadata-token": token}
    )
    if found is None:
        return None
    when = datetime.strptime(json.loads(found)["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return max(0.0, when.timestamp() - time.time())


def google_notice(base: str = GOOGLE) -> float | None:
    """Seconds until this Compute Engine machine is taken back; None: no notice, or not such a machine."""
    found = _fetch(f"{base}/computeMetadata/v1/instance/preempted", "GET", {"Metadata-Flavor": "Google"})
    return _GOOGLE_WARNS if found == "TRUE" else None


def drain_command(seconds: float) -> list[str]:
    """The command that tells Ray that this machine goes after so many seconds."""
    return [
        sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message", "the cloud takes the machine back", "--deadline-remaining-seconds", str(int(seconds)),
    ]  # fmt: skip


def watch(
    notices: tuple[Callable[[], float | None], ...] = (aws_notice, google_notice),
    tell: Callable[[float], object] = lambda seconds: subprocess.run(drain_command(seconds), check=True),
    every: float = _EVERY,
) -> None:
    """Ask until there is a notice, pass it on, and return.

    Args:
        notices: each gives seconds, or None.
        tell: gets the seconds that are left.
        every: seconds between two questions.
    """
    while True:
        for notice in notices:
            seconds = notice()
            if seconds is not None:
                tell(seconds)
                return
        time.sleep(every)


def _fetch(url: str, method: str, headers: dict[str, str]) -> str | None:
    """The answer's text; None where there is none."""
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            text: str = answer.read().decode()
            return text.strip()
    except (OSError, urllib.error.URLError):
        return None


if __name__ == "__main__":
    watch()
