"""`opmix study`: a run's decisions for optuna-dashboard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opmix_ray.commands.options import Json, RunOutput


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
