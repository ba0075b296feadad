"""For mkdocs: files of the repository that a page links to (`../examples/x.yaml`) become part of the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\(\.\./([^)#\s]+)\)")


def on_files(files: Files, *, config: Any) -> Files:
    """Add every file that is linked to, below `files/`."""
    pages = [page for page in files if page.src_uri.endswith(".md")]
    targets = {target for page in pages for target in LINK.findall(page.content_string)}
    for target in sorted(targets):
        if (ROOT / target).is_file():
            content = (ROOT / target).read_bytes()
            files.append(File.generated(config, f"files/{target}.txt", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point the links there; one to a file that is not there stays as it is, which `--strict` refuses."""
    return LINK.sub(lambda found: _moved(found[1]), markdown)


def _moved(target: str) -> str:
    return f"](files/{target}.txt)" if (ROOT / target).is_file() else f"](../{target})"
