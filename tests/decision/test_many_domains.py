"""A decision between five hundred domains: it is made, in time, and favours those that serve the target."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from opmix_ray.data.prepare import prepare
from opmix_ray.decision.make import Situation, make_decision
from opmix_ray.decision.progress import Progress
from opmix_ray.mixture import Mixture
from opmix_ray.output.ledger import Ledger
from opmix_ray.storage import Storage
from tests.support import TinyRun

DOMAINS = 500
SERVING = 20  # domains with the target's words
WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in ("lin", "ran", "sot", "mek", "tur", "vis")]


def _rows(words: list[str], count: int, draw: random.Random) -> str:
    texts = (" ".join(draw.choices(words, k=60)) for _ in range(count))
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_hundred_domains(tiny: TinyRun) -> None:
    draw, folder = random.Random(0), Path(tiny.directory)
    names = [f"d{number:03d}" for number in range(DOMAINS)]
    target, other = WORDS[:75], WORDS[75:]
    for number, name in enumerate(names):
        file = folder / f"{name}.jsonl"
        file.write_text(_rows(target if number < SERVING else other, 12, draw))
    (folder / "target.jsonl").write_text(_rows(target, 40, draw))
    tiny.tree["data"] |= {
        "domains": {name: {"path": str(folder / f"{name}.jsonl")} for name in names},
        "cache": str(folder / "cache"),
    }
    tiny.tree["evaluation"] |= {
        "sets": {"target": {"path": str(folder / "target.jsonl")}},
        "weights": {"target": 1.0},
    }
    tiny.tree["search"] = {}
    tiny.tree["stages"][0]["steps"] = 2000
    config = tiny.load()
    prepared = prepare(config)
    assert len(prepared.domains) == DOMAINS
    current = Mixture.uniform(names)
    situation = Situation(
        index=0, step=1000, stage="only", space="simplex", current=current, model=None, tokens_left=128_000,
        tokens_used={name: 256.0 for name in names},
    )  # fmt: skip
    storage, began = Storage(str(folder / "out")), time.monotonic()
    decision = make_decision(config, prepared, storage, situation, Progress(), Ledger())
    assert time.monotonic() - began < 300
    assert sum(decision.mixture.values()) == pytest.approx(1)
    serving = sum(decision.proposal[name] for name in names[:SERVING])
    assert serving > 2 * SERVING / DOMAINS
    assert min(decision.proposal.values()) >= 0
    assert storage.exists("decisions/000/law.json")
