"""The worked plans: they fit the machines they are for, and the document shows what the planner says about them."""

from __future__ import annotations

import pytest

from opmix_ray.cluster.memory import plan_memory
from opmix_ray.cluster.memory_check import Machine, memory_words, shortages
from opmix_ray.config import load_config
from tests.cli.conftest import Opmix
from tests.cli.conftest import opmix as opmix
from tests.support import ROOT, TinyRun

PLANS = ROOT / "examples" / "plans"
MACHINE = Machine(cpus=192, memory=2e12, gpu_memory=80e9)  # 8 GPUs of 80 GB in 2 TB


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in PLANS.glob("*.yaml")))
def test_the_document_shows_what_the_planner_says(name: str) -> None:
    config = load_config(PLANS / name, ["train.cpus_per_worker=24"])
    plan = plan_memory(config)
    assert shortages(config, plan, [MACHINE]) == []
    document = (ROOT / "docs" / "large_models.md").read_text()
    assert (
        f"opmix memory examples/plans/{name}\n{memory_words({'memory': plan, 'warnings': []})}\n" in document
    )


def test_a_plan_is_made_without_data_and_cluster(opmix: Opmix, tiny: TinyRun) -> None:
    tiny.tree["data"]["domains"]["code"]["path"] = "/nowhere/*.jsonl"
    tiny.tree["train"]["gpus_per_worker"] = 1
    found = opmix("memory", tiny.write())
    assert (found.code, found.err) == (0, "")
    assert found.out == memory_words({"memory": plan_memory(tiny.load()), "warnings": []}) + "\n"
    tiny.tree["tokenizer"]["path"] = "/nowhere"
    line = opmix("memory", tiny.write()).only_error()
    assert line.startswith(f"error: {tiny.file}: tokenizer.path = /nowhere: ")
