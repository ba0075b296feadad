"""Object stores named by a URI: opened without credentials in it, and what they answer in our own words.

    system, inner = open_uri("s3://bucket/run?region=eu-central-1", key="output")

Credentials come from where each store's own tools take them: AWS_ACCESS_KEY_ID, ~/.aws, a machine's role,
GOOGLE_APPLICATION_CREDENTIALS. A URI that carries them is refused, since URIs are written into files and shown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs as pafs

from opmix_ray.errors import UserError
from opmix_ray.harmless import in_uri
from opmix_ray.paths import is_uri

_BUCKET = ("NO_SUCH_BUCKET", "NoSuchBucket", "bucket does not exist", "Bucket not found")
_REFUSED = (
    "ACCESS_DENIED", "SIGNATURE_DOES_NOT_MATCH", "INVALID_ACCESS_KEY", "INVALID_CLIENT_TOKEN", "InvalidToken",
    "EXPIRED", "expired", "UNRECOGNIZED_CLIENT", "MISSING_AUTHENTICATION", "TIME_TOO_SKEWED", "FORBIDDEN",
    "HTTP status 403", "HTTP status 401", "Permission denied", "UNAUTHENTICATED", "PERMISSION_DENIED",
)  # fmt: skip
_NETWORK = (
    "NETWORK_CONNECTION",
    "ConnectError",
    "Name or service not known",
    "Could not resolve",
    "curlCode",
    "Connection refused",
    "UNAVAILABLE",
)


def is_local(path: str) -> bool:
    """Whether a path or URI names a file of this machine."""
    return not is_uri(path) or path.startswith("file://")


def local_path(path: str) -> str:
    """A path without `~`, or the path that a `file://` URI stands for: without its host, and decoded."""
    if not path.startswith("file://"):
        return os.path.expanduser(path)
    return unquote("/" + path.removeprefix("file://").partition("/")[2])


class _Package(pafs.FSSpecHandler):  # type: ignore[misc]
    """A file system of another package, such as `hf://`, which raises what it likes where it does not answer."""

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return _told(found) if name.startswith(("get_file_info", "open_")) else found


def _told(call: Callable[..., Any]) -> Callable[..., Any]:
    """A call whose errors are those of a file system."""

    def called(*arguments: Any, **named: Any) -> Any:
        try:
            return call(*arguments, **named)
        except (OSError, NotImplementedError):
            raise
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {reason(error)}") from error

    return called


def open_uri(uri: str, *, key: str | None = None) -> tuple[pafs.FileSystem, str]:
    """The file system of a URI, and the path inside it.

    Args:
        uri: `s3://`, `gs://`, or another scheme that pyarrow knows.
        key: configuration key named in errors.

    Raises:
        UserError: the URI carries credentials, its scheme is unknown, or the store does not answer.
    """
    refuse_credentials(uri, key=key)
    try:
        found, path = pafs.FileSystem.from_uri(uri)
        if isinstance(found, pafs.PyFileSystem) and isinstance(found.handler, pafs.FSSpecHandler):
            found = pafs.PyFileSystem(_Package(found.handler.fs))
        return found, path
    except Exception as error:  # a package of the scheme raises what it likes
        raise UserError(
            f"cannot open this file system: {reason(error)}",
            key=key,
            value=uri,
            remedy=remedy(error, "use a path, s3:// or gs://"),
        ) from None


def refuse_credentials(uri: str, *, key: str | None = None) -> None:
    """Raise a `UserError`, which does not show them, where a URI carries credentials."""
    if not is_uri(uri):
        return
    shown = without_credentials(uri)
    if shown != uri:
        raise UserError(
            "holds credentials, which would be written into files and logs",
            key=key,
            value=shown,
            remedy="leave them out and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a profile or role",
        )


def without_credentials(uri: str) -> str:
    """The URI with `***` in the place of a password and of every secret in its query."""
    return in_uri(uri)


def reason(error: BaseException) -> str:
    """The first line of what a file system said, without the number of the request."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return re.sub(r"\s*\(Request ID: [^)]*\)", "", str(text).splitlines()[0])


def remedy(error: BaseException, otherwise: str) -> str:
    """What to do about what a file system said."""
    text = str(error)
    if any(word in text for word in _BUCKET) or re.search(r"[Bb]ucket '[^']*' not found", text):
        return "check the bucket's name"
    if any(word in text for word in _REFUSED):
        return "check the permissions, and that the credentials are right and have not expired"
    if any(word in text for word in _NETWORK):
        return "check the network, the region and the endpoint"
    return otherwise


def missing_bucket(system: pafs.FileSystem, inner: str) -> bool:
    """Whether an object store lacks the bucket of a path inside it; False where it does not say."""
    if isinstance(system, pafs.LocalFileSystem):
        return False
    try:
        return bool(system.get_file_info(inner.partition("/")[0]).type == pafs.FileType.NotFound)
    except (pa.ArrowException, OSError):
        return False
