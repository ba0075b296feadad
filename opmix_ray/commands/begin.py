"""Before a first run: `opmix init`, `opmix discover`, `opmix doctor` and `opmix memory`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from opmix_ray.commands.options import Address, Config, Json, about, console, show
from opmix_ray.errors import UserError
from opmix_ray.pile import DOMAINS


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
    show(found, _begun(found), as_json)


def _begun(found: dict[str, Any]) -> str:
    plan = found["plan"]
    return (
        f"{found['config']}: a model of {plan['weights'] / 1e6:.1f} million weights, {plan['steps']} steps, "
        f"{plan['tokens']:,} tokens, about {plan['seconds'] / 60:.1f} minutes"
        + (" (the data end it)" if plan["by"] == "data" else "")
        + f"\nnext: opmix run {found['config']}"
    )


def discover(
    files: Annotated[
        list[str], typer.Argument(metavar="FILES", help="Files or folders of the pile.", show_default=False)
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="New directory.", show_default=False)],
    domains: Annotated[
        int | None, typer.Option(help=f"How many domains; none: {DOMAINS}, or those of --like.")
    ] = None,
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
    show(found, _sorted_out(found, output), as_json)


def _sorted_out(found: dict[str, Any], output: str) -> str:
    stability = found["stability"]
    said = [] if stability is None else [f"stability: adjusted Rand index {stability['adjusted_rand']:.2f}"]
    said.append(f"{Path(output) / 'discover.html'}")
    if found["config"] is not None:
        said.append(f"next: opmix run {Path(output) / 'opmix.yaml'}")
    return "\n".join(said)


def doctor(
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Show what this machine is like, and what will be slow.

    Versions, Ray, processors, GPUs, memory, shared memory, disks.
    """
    from opmix_ray.cluster.doctor import examine, summary

    findings = examine(address)
    found = summary(findings)
    show(found, found["findings"], as_json)
    if not as_json:
        counts = f"{found['wrong']} wrong, {found['slow']} slow"
        print(f"\n{counts}" if found["wrong"] or found["slow"] else "\nnothing wrong or slow was found")


def memory(
    config: Config,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a key: --set model.recompute=true", metavar="KEY=VALUE"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON and nothing else.")] = False,
) -> None:
    """Plan the memory that every part of a run needs.

    Workers of the main run, probes, evaluators, machines and the driver.
    """
    from opmix_ray.config import load_config

    loaded = load_config(config, settings)
    from opmix_ray.cluster.memory import plan_memory
    from opmix_ray.cluster.memory_check import memory_words

    with about(config):
        plan = plan_memory(loaded)
    show(plan, memory_words({"memory": plan, "warnings": []}), as_json)
