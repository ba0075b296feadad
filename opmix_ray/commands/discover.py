"""`opmix discover`: domains for a pile that has none."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from opmix_ray.commands.options import Json
from opmix_ray.pile import DOMAINS


def discover(
    files: Annotated[
        list[str], typer.Argument(metavar="FILES", help="Files or folders of the pile.", show_default=False)
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="New directory.", show_default=False)],
    domains: Annotated[int, typer.Option(help="How many domains.")] = DOMAINS,
    like: Annotated[
        Path | None,
        typer.Option(help="Output of an earlier call: these files go into its domains.", metavar="DIR"),
    ] = None,
    vectors: Annotated[
        str | None,
        typer.Option(help="FILE.npy or column with a vector for each document, instead of its words."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Hub id, directory or tokenizer.json that token ids were made with.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything that is random.")] = 0,
    as_json: Json = False,
) -> None:
    """Sort a pile of documents into domains.

    Writes shards by domain, a page to look at, and an opmix.yaml.
    """
    from opmix_ray.commands.show import console, show
    from opmix_ray.pile.make import discover as sort

    def say(text: str) -> None:
        if not as_json:
            console().print(text, highlight=False, markup=False)

    found = sort(
        files, output, domains=domains, like=like, vectors=vectors, tokenizer=tokenizer, seed=seed, say=say
    )
    if not as_json:
        rows = [
            {
                "domain": domain["name"],
                "documents": domain["documents"],
                "share": f"{domain['share']:.1%}",
                "typical words": ", ".join(domain["words"][:6]),
            }
            for domain in found["domains"]
        ]
        show(rows, rows, False)
    show(found, _words(found, output), as_json)


def _words(found: dict[str, Any], output: str) -> str:
    stability = found["stability"]
    said = [] if stability is None else [f"stability: adjusted Rand index {stability['adjusted_rand']:.2f}"]
    said.append(f"{Path(output) / 'discover.html'}")
    if found["config"] is not None:
        said.append(f"next: opmix run {Path(output) / 'opmix.yaml'}")
    return "\n".join(said)
