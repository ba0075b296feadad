"""A file format: plain text whose documents stand between blank lines.

Used as `{path: notes.txt, format: paragraphs}`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path


def read(path: str) -> Iterator[dict[str, str]]:
    """Rows of a file with the column `text`; the same bytes always give the same rows.

    Args:
        path: absolute; a domain on an object store would hand over a URI.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    for blank, group in itertools.groupby(lines, key=lambda line: not line.strip()):
        if not blank:
            yield {"text": "\n".join(group)}
