"""`opmix export`: a mixture for another trainer. `opmix study`: a run's decisions for optuna-dashboard."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from opmix_ray.commands.options import Json, RunOutput

FORMATS = "megatron, megatron-energon, olmo-core, nemo, torchtitan, llamafactory, axolotl, datasets, streaming or olmix"


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="Output of a run, a search or a fit, or a mixture.json.", show_default=False
        ),
    ],
    format: Annotated[str, typer.Option("--format", "-f", help=f"{FORMATS}.", show_default=False)],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="File or directory to write; none: DIR/export/FORMAT."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Configuration that says where the data are; none: the one in DIR.")
    ] = None,
    path: Annotated[
        list[str] | None,
        typer.Option(
            "--path", help="Where the trainer finds a domain: --path code=/data/code", metavar="NAME=PATH"
        ),
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(
            help="What the trainer's samples are: documents, or tokens where all have one length; none: the format's."
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens the trainer is to train on; none: those of the stage.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a mixture in another trainer's own format."""
    from opmix_ray.commands.run_export import export as write
    from opmix_ray.commands.show import show
    from opmix_ray.errors import UserError

    if unit not in (None, "tokens", "documents"):
        raise UserError("must be tokens or documents", key="--unit", value=unit, remedy="mend it")
    counts = cast(Literal["tokens", "documents"] | None, unit)
    found = write(source, format, output, config=config, paths=path or [], unit=counts, tokens=tokens)
    show(asdict(found), "\n".join([*found.files, *(f"- {note}" for note in found.notes)]), as_json)


def study(
    directory: RunOutput,
    output: Annotated[Path, typer.Option("--output", "-o", help="Journal file to write.")] = Path(
        "study.log"
    ),
    as_json: Json = False,
) -> None:
    """Write every decision as an Optuna study, for optuna-dashboard."""
    from opmix_ray.commands.show import show
    from opmix_ray.commands.studies import write_studies

    written = write_studies(directory, output)
    words = "\n".join(f"{name}: {count} trials" for name, count in written.items())
    show({"file": str(output), "studies": written}, f"{words}\nnext: optuna-dashboard {output}", as_json)
