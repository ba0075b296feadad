"""`opmix init`: a configuration for one's own files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from opmix_ray.commands.options import Json
from opmix_ray.errors import UserError


def init(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where opmix.yaml is written.", show_default=False)
    ],
    more: Annotated[
        list[str] | None, typer.Argument(metavar="FILE", help="Further files.", show_default=False)
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            "-d",
            help="Folder or file with data: a domain per file or sub-folder.",
            show_default=False,
        ),
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.5, help="Time the run may take on this machine.")] = 10.0,
    model: Annotated[
        str | None, typer.Option(help="Hub id or directory of a pretrained model; none: fresh weights.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Hub id, directory or tokenizer.json; none: the model's, or one is trained."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; none: the directory's.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an opmix.yaml that is there.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a configuration for your own files.

    It looks at them and plans a run that takes the time given on this machine.
    """
    paths = [*(data or []), *(more or [])]
    if not paths:
        raise UserError(
            "no data is named", key="--data", remedy="give a folder, or files: --data a.jsonl b.jsonl"
        )
    from opmix_ray.commands.show import console, show
    from opmix_ray.init.begin import begin

    def say(text: str) -> None:
        if not as_json:
            console().print(text, highlight=False, markup=False)

    begun = begin(
        directory,
        paths,
        minutes=minutes,
        model=model,
        tokenizer=tokenizer,
        name=name,
        overwrite=overwrite,
        say=say,
    )
    found: dict[str, Any] = {"config": str(begun.file), "domains": begun.domains, "plan": asdict(begun.plan)}
    if not as_json:
        show(begun.domains, begun.domains, False)
    show(found, _words(found), as_json)


def _words(found: dict[str, Any]) -> str:
    plan = found["plan"]
    return (
        f"{found['config']}: a model of {plan['weights'] / 1e6:.1f} million weights, {plan['steps']} steps, "
        f"{plan['tokens']:,} tokens, about {plan['seconds'] / 60:.1f} minutes"
        + (" (the data end it)" if plan["by"] == "data" else "")
        + f"\nnext: opmix run {found['config']}"
    )
