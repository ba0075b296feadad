"""A comparison's content made of numbers, without a run."""

from __future__ import annotations

from typing import Any

from opmix_ray.compare.summary import Row, summarise


def row(strategy: str, seed: int, loss: float, flops: float = 1e12, search: float = 0.0) -> Row:
    losses = {"code": loss, "german": loss + 1}
    perplexity = {name: 2.0**value for name, value in losses.items()}
    return Row(
        strategy=strategy, seed=seed, losses=losses, perplexity=perplexity, accuracy={}, mean_accuracy=None,
        mean_loss=loss + 0.5,
        mean_perplexity=sum(perplexity.values()) / 2, objective=loss, forgetting=None, steps=100, tokens=1e6,
        flops=flops, search_flops=search, worker_seconds=10.0, wall_seconds=12.0, mixture={"code": 0.5, "german": 0.5},
    )  # fmt: skip


def content(rows: list[Row], strategies: list[str]) -> dict[str, Any]:
    seeds = sorted({r.seed for r in rows})
    return {
        "name": "made <up>", "strategies": strategies, "seeds": seeds, "equal_compute": True,
        "complete": len(rows) == len(seeds) * len(strategies), "summary": summarise(rows, strategies),
        "rows": [r.to_dict() for r in rows], "config": "name: made\n",
    }  # fmt: skip
