"""Whole runs and FSDP2 on one GPU (`make test-gpu`); FSDP2 of one worker is tried on CPUs too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from opmix_ray.cluster.connect import connected
from opmix_ray.data.prepare import prepare
from opmix_ray.train.trainer import run_segment
from tests.support import ROOT, TinyRun, opmix, read_json
from tests.train.test_segment import by_domain, losses, segment

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
ON_GPU = [f"--set={key}=1" for key in ("train.gpus_per_worker", "probe.gpus", "search.gpus")]


@pytest.mark.slow
@pytest.mark.parametrize("gpus", [0, pytest.param(1, marks=NO_GPU)])
def test_fsdp2_of_one_worker_trains_like_ddp_on_a_cpu(tiny: TinyRun, gpus: int) -> None:
    prepared = prepare(tiny.load())
    keys = [f"train.gpus_per_worker={gpus}", "train.strategy=fsdp2", "train.micro_batch_size=1"]
    with connected(tiny.load(*keys)):  # workers on a GPU are no copies
        alone = run_segment(segment(tiny, prepared, "ddp"), lambda *_: None)
        sharded = run_segment(segment(tiny, prepared, f"fsdp-{gpus}", set=keys), lambda *_: None)
    assert losses(sharded) == pytest.approx(losses(alone), abs=1e-3 if gpus else 1e-4)
    assert by_domain(sharded).tokens.tolist() == by_domain(alone).tokens.tolist()
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(Path(tiny.directory / name / result.checkpoint / "model"))
        for name, result in ((f"fsdp-{gpus}", sharded), ("ddp", alone))
    )
    for name, tensor in ours.state_dict().items():
        assert (tensor - theirs.state_dict()[name]).abs().max() < 1e-2, name


@pytest.mark.slow
@NO_GPU
def test_the_demo_decides_on_a_gpu_as_on_cpus(tmp_path: Path) -> None:
    final = []
    for name, keys in (("cpu", []), ("gpu", ON_GPU)):
        done = opmix("run", str(ROOT / "examples" / "demo.yaml"), "--output", str(tmp_path / name), *keys)
        assert done.returncode == 0, done.stderr
        result = read_json(tmp_path / name / "result.json")
        assert len(result["decisions"]) == 1
        final.append(result["evaluations"][-1]["losses"]["addresses"])
    assert final[1] == pytest.approx(final[0], abs=0.1)
