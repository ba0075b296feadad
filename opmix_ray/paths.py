"""What a path says by itself: whether it is a URI, which format its file has, which documents that holds."""

from __future__ import annotations

from typing import Literal

Kind = Literal["text", "prompt", "messages", "tokens"]  # what a document is

BIN, IDX = ".bin", ".idx"  # of Megatron's indexed data sets
ENDINGS = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl",
    ".json.gz": "jsonl",
    ".json.zst": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".npy": "tokens",
    ".bin": "tokens",
}


def is_uri(path: str) -> bool:
    """Whether a path names a file system other than the local one (`s3://`, `gs://`, ...)."""
    return "://" in path


def file_format(path: str) -> str | None:
    """Format by file ending, or None where it says nothing."""
    name = path.partition("?")[0] if is_uri(path) else path
    name = name.lower()
    return next((kind for ending, kind in ENDINGS.items() if name.endswith(ending)), None)
