"""A real S3 server (moto's) with one bucket, which checks every signature and forgets all when it ends."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3

BUCKET = "data"
REGION = "us-east-1"
_ALLOW_S3 = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}


@dataclass(frozen=True)
class ObjectStore:
    """The server's port and the one pair of keys that it accepts."""

    port: int
    access_key: str
    secret_key: str

    def uri(self, key: str, bucket: str = BUCKET) -> str:
        """The URI of a key in a bucket."""
        return f"s3://{bucket}/{key}?scheme=http&endpoint_override=127.0.0.1:{self.port}&region={REGION}"

    def environment(self, **other: str) -> dict[str, str]:
        """Variables under which a process is let in; `other` replaces some."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
        } | other


@contextmanager
def object_store(directory: Path) -> Iterator[ObjectStore]:
    """Run a server for the time of a `with`; its log goes to `directory`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open(directory / "s3.log", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=log, stderr=log
        )
        try:
            yield _prepared(port)
        finally:
            server.terminate()
            server.wait()


def _prepared(port: int) -> ObjectStore:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    address = f"http://127.0.0.1:{port}"
    first = {
        "endpoint_url": address,
        "region_name": REGION,
        "aws_access_key_id": "first",
        "aws_secret_access_key": "first",
    }
    boto3.client("s3", **first).create_bucket(Bucket=BUCKET)
    iam = boto3.client("iam", **first)
    iam.create_user(UserName="tester")
    iam.put_user_policy(UserName="tester", PolicyName="s3", PolicyDocument=json.dumps(_ALLOW_S3))
    made = iam.create_access_key(UserName="tester")["AccessKey"]
    check_all_from_now = urllib.request.Request(
        f"{address}/moto-api/reset-auth", data=b"0", headers={"Content-Type": "text/plain"}, method="POST"
    )
    urllib.request.urlopen(check_all_from_now).read()
    return ObjectStore(port, made["AccessKeyId"], made["SecretAccessKey"])
