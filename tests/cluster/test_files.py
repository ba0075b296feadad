"""cluster.yaml, cluster.gcp.yaml and examples/rayjob.yaml, checked without a cloud."""

from __future__ import annotations

import copy
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

import opmix_ray
from opmix_ray.config import load_config
from opmix_ray.runner.check_plan import check_plan
from tests.support import ROOT

LAUNCHED = ["cluster.yaml", "cluster.gcp.yaml"]
RAYJOB = ROOT / "examples" / "rayjob.yaml"
# Size of the machines named in the files: CPUs, GPUs, GB of memory (the clouds' own tables).
MACHINES = {
    "m6i.xlarge": (4, 0, 16),
    "m6i.8xlarge": (32, 0, 128),
    "g5.2xlarge": (8, 1, 32),
    "g5.12xlarge": (48, 4, 192),
    "n2-standard-4": (4, 0, 16),
    "n2-standard-32": (32, 0, 128),
    "g2-standard-8": (8, 1, 32),
    "g2-standard-48": (48, 4, 192),
}
# Fields of ray.io/v1 (KubeRay's docs/reference/api.md).
RAYJOB_FIELDS = {
    "activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate", "metadata", "clusterSelector",
    "submitterConfig", "managedBy", "deletionStrategy", "entrypoint", "runtimeEnvYAML", "jobId", "submissionMode",
    "entrypointResources", "entrypointNumCpus", "entrypointNumGpus", "ttlSecondsAfterFinished",
    "shutdownAfterJobFinishes", "suspend",
}  # fmt: skip
CLUSTER_FIELDS = {
    "suspend", "managedBy", "autoscalerOptions", "headServiceAnnotations", "enableInTreeAutoscaling",
    "gcsFaultToleranceOptions", "headGroupSpec", "rayVersion", "workerGroupSpecs",
}  # fmt: skip
AUTOSCALER_FIELDS = {
    "resources", "image", "imagePullPolicy", "securityContext", "idleTimeoutSeconds", "upscalingMode", "version",
    "env", "envFrom", "volumeMounts",
}  # fmt: skip
HEAD_FIELDS = {"template", "headService", "enableIngress", "rayStartParams", "serviceType"}
GROUP_FIELDS = {
    "suspend", "groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "rayStartParams",
    "template", "scaleStrategy", "numOfHosts",
}  # fmt: skip


def pinned(package: str) -> str:
    """The version of a package in constraints.txt."""
    found = re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found, package
    return found[1]


@pytest.fixture(params=LAUNCHED)
def launched(request: pytest.FixtureRequest) -> dict[str, Any]:
    return yaml.safe_load((ROOT / request.param).read_text())


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return yaml.safe_load(RAYJOB.read_text())


def machine(node_type: dict[str, Any]) -> tuple[int, int, int]:
    """CPUs, GPUs and GB of a node type's machines."""
    config = node_type["node_config"]
    return MACHINES[config.get("InstanceType") or config["machineType"]]


def is_spot(node_type: dict[str, Any]) -> bool:
    config = node_type["node_config"]
    if "InstanceMarketOptions" in config:
        return bool(config["InstanceMarketOptions"]["MarketType"] == "spot")
    return {"preemptible": True} in config.get("scheduling", [])


def shared_memory(options: list[str]) -> int:
    """GB of `--shm-size`."""
    return next(int(found[1]) for option in options if (found := re.fullmatch(r"--shm-size=(\d+)gb", option)))


def test_ray_takes_the_file(launched: dict[str, Any]) -> None:
    prepared = prepare_config(copy.deepcopy(launched))
    validate_config(prepared)
    assert not any("ray-wheels" in command for command in prepared["head_setup_commands"])
    broken = launched | {"max_worker": 3}
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(broken))


def test_the_head_has_no_room_and_workers_come_from_zero(launched: dict[str, Any]) -> None:
    types = launched["available_node_types"]
    head = types[launched["head_node_type"]]
    assert (head["resources"]["CPU"], head["resources"].get("GPU", 0), head["max_workers"]) == (0, 0, 0)
    workers = {name: each for name, each in types.items() if name != launched["head_node_type"]}
    assert all(each["min_workers"] == 0 for each in workers.values())
    assert sum(each["max_workers"] for each in workers.values()) <= launched["max_workers"]
    assert 0 < launched["idle_timeout_minutes"] <= 10
    trainers = [each for each in workers.values() if "trainer" in each["resources"]]
    assert trainers
    assert not any(is_spot(each) for each in trainers)
    assert any(is_spot(each) and each["resources"].get("GPU") for each in workers.values())
    assert any(not each["resources"].get("GPU") for each in workers.values())


def test_resources_and_shared_memory_agree_with_the_machines(launched: dict[str, Any]) -> None:
    for name, each in launched["available_node_types"].items():
        cpus, gpus, memory = machine(each)
        assert each["resources"].get("GPU", 0) == gpus, name
        if name == launched["head_node_type"]:
            options = launched["docker"]["head_run_options"]
        else:
            assert each["resources"]["CPU"] == cpus, name
            options = each["docker"]["worker_run_options"]
        assert 0.3 * memory <= shared_memory(options) <= 0.5 * memory, name


def test_images_and_wheels_have_the_pinned_ray(launched: dict[str, Any]) -> None:
    text = yaml.safe_dump(launched)
    images = re.findall(r"rayproject/ray:(\S+)", text)
    assert images
    assert all(re.match(rf"{re.escape(pinned('ray'))}-py311(-gpu)?$", image) for image in images)
    install = launched["setup_commands"][-1]
    assert "-c constraints.txt" in install
    assert "[cluster]" in install


def test_what_is_mounted_is_there(launched: dict[str, Any]) -> None:
    made_by_ray = "~/.ray/auth_token"  # by `ray get-auth-token --generate`
    for target, source in launched["file_mounts"].items():
        assert target.startswith("/home/ray/")
        assert source == made_by_ray or (ROOT / source).exists()
    directory = next(target for target, source in launched["file_mounts"].items() if source == ".")
    assert f"cd {directory} " in launched["setup_commands"][-1]
    for file in ("constraints.txt", "pyproject.toml"):
        assert (ROOT / file).exists()


def test_every_ray_process_wants_the_token(launched: dict[str, Any]) -> None:
    for role in ("head", "worker"):
        stop, *commands = launched[f"{role}_start_ray_commands"]
        assert stop == "ray stop"
        assert all(command.startswith("export RAY_AUTH_MODE=token;") for command in commands)
    assert "-m opmix_ray.spot" in launched["worker_start_ray_commands"][-1]
    head = launched["head_start_ray_commands"][-1]
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert "--dashboard-host=127.0.0.1" in head


def groups(job: dict[str, Any]) -> list[dict[str, Any]]:
    return job["spec"]["rayClusterSpec"]["workerGroupSpecs"]


def test_the_rayjob_has_documented_fields_only(job: dict[str, Any]) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert set(spec) <= RAYJOB_FIELDS
    assert set(spec["submitterConfig"]) <= {"backoffLimit"}
    assert set(cluster) <= CLUSTER_FIELDS
    assert set(cluster["autoscalerOptions"]) <= AUTOSCALER_FIELDS
    assert cluster["autoscalerOptions"]["upscalingMode"] in ("Default", "Aggressive", "Conservative")
    assert set(cluster["headGroupSpec"]) <= HEAD_FIELDS
    for group in groups(job):
        assert set(group) <= GROUP_FIELDS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_the_rayjob_grows_from_zero_and_goes_when_it_is_done(job: dict[str, Any]) -> None:
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["submitterConfig"]["backoffLimit"] == 0
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert all(group["minReplicas"] == 0 for group in groups(job))
    spot = {group["groupName"] for group in groups(job) if "nodeSelector" in group["template"]["spec"]}
    assert "trainer" not in spot
    assert {"probe", "cpu"} <= spot


def gibibytes(quantity: str) -> int:
    assert quantity.endswith("Gi")
    return int(quantity.removesuffix("Gi"))


def test_every_pod_has_shared_memory_the_token_and_the_pinned_ray(job: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == pinned("ray")
    dockerfile = (ROOT / "examples" / "Dockerfile").read_text()
    assert f"FROM rayproject/ray:{pinned('ray')}-py311-gpu\n" in dockerfile
    assert "-c /home/ray/opmix_ray/constraints.txt" in dockerfile
    for group in [cluster["headGroupSpec"], *groups(job)]:
        spec = group["template"]["spec"]
        (container,) = spec["containers"]
        (volume,) = [each for each in spec["volumes"] if each["name"] == "shm"]
        assert volume["emptyDir"]["medium"] == "Memory"
        share = gibibytes(volume["emptyDir"]["sizeLimit"]) / gibibytes(
            container["resources"]["limits"]["memory"]
        )
        assert 0.3 <= share <= 0.5
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        assert {"name": "RAY_AUTH_MODE", "value": "token"} in container["env"]
        assert container["image"].endswith(f"opmix_ray:{opmix_ray.__version__}")


def test_the_command_of_the_rayjob_is_a_run_that_its_groups_can_hold(job: dict[str, Any]) -> None:
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:2] == ["opmix", "run"]
    file = ROOT / Path(words[2]).relative_to("/home/ray/opmix_ray")
    settings = [value for flag, value in pairwise(words) if flag == "--set"]
    config = load_config(file, settings)
    assert check_plan(config) == []
    (trainer,) = [group for group in groups(job) if group["groupName"] == "trainer"]
    container = trainer["template"]["spec"]["containers"][0]
    assert '\\"trainer\\"' in trainer["rayStartParams"]["resources"]
    assert config.train.resources == {"trainer": 1}
    requests = container["resources"]["requests"]
    assert config.train.workers * config.train.cpus_per_worker <= int(requests["cpu"])
    assert config.train.workers * config.train.gpus_per_worker <= int(requests["nvidia.com/gpu"])
    grace = trainer["template"]["spec"]["terminationGracePeriodSeconds"]
    notice = container["lifecycle"]["preStop"]["exec"]["command"][-1]
    seconds = re.search(r"--deadline-remaining-seconds (\d+); sleep (\d+)", notice)
    assert seconds
    assert int(seconds[1]) <= int(seconds[2]) < grace
