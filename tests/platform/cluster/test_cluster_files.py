"""The cluster files are valid by the schemas of Ray and Kubernetes, as far as installed packages have them."""

from __future__ import annotations

import copy
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from siclip_platform.cluster.connect import Needs

FOLDER = Path(__file__).resolve().parents[3] / "jobs" / "cluster"
CLUSTER_FIELDS = {"rayVersion", "authOptions", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"}
JOB_FIELDS = {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "rayClusterSpec"}
GROUP_FIELDS = {"groupName", "labels", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return found


@pytest.fixture(params=["kuberay-cluster.yaml", "kuberay-job.yaml"])
def cluster(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The cluster part of both Kubernetes files."""
    document = read(request.param)
    assert document["apiVersion"] == "ray.io/v1"
    if document["kind"] == "RayJob":
        assert set(document["spec"]) <= JOB_FIELDS
        found: dict[str, Any] = document["spec"]["rayClusterSpec"]
    else:
        assert document["kind"] == "RayCluster"
        found = document["spec"]
    return found


def groups(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {"head": cluster["headGroupSpec"]} | {group["groupName"]: group for group in cluster["workerGroupSpecs"]}


def container(group: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = group["template"]["spec"]["containers"][0]
    return found


def test_the_launchers_file_is_valid() -> None:
    config = read("launcher.yaml")
    validate_config(prepare_config(copy.deepcopy(config)))
    assert config["max_workers"] == len(config["provider"]["worker_ips"])
    with pytest.raises(Exception, match="workers"):
        validate_config(prepare_config(config | {"max_workerz": 1, "workers": "many"}))


def test_every_pod_is_valid(cluster: dict[str, Any]) -> None:
    for name, group in groups(cluster).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, **group["template"]}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
        broken = copy.deepcopy(pod)
        broken["spec"]["containers"][0]["resource"] = {}
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, kubernetes_validate.latest_version(), strict=True)


def test_the_cluster_has_only_fields_of_kuberay_and_the_locked_version_of_ray(cluster: dict[str, Any]) -> None:
    assert set(cluster) <= CLUSTER_FIELDS
    assert all(set(group) <= GROUP_FIELDS for group in cluster["workerGroupSpecs"])
    assert cluster["rayVersion"] == version("ray")


def test_tokens_are_required_and_no_file_contains_one(cluster: dict[str, Any]) -> None:
    assert cluster["authOptions"] == {"mode": "token", "secretName": "siclip-ray-token"}
    for path in FOLDER.glob("*.yaml"):
        text = path.read_text()
        assert not re.search(r"auth_token[:=]\s*['\"]?[0-9a-f]{16,}", text)
        assert "RAY_AUTH_MODE=disabled" not in text
    assert "--dashboard-host=127.0.0.1" in (FOLDER / "launcher.yaml").read_text()


def test_only_the_gpu_group_has_a_gpu_and_a_search_fits(cluster: dict[str, Any]) -> None:
    gpus = {n: container(g)["resources"]["limits"].get("nvidia.com/gpu", "0") for n, g in groups(cluster).items()}
    assert gpus == {"head": "0", "data": "0", "gpu": "1"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    cpus = sum(int(container(group)["resources"]["limits"]["cpu"]) for group in cluster["workerGroupSpecs"])
    assert cpus >= Needs(concurrent=2, worker_cpus=1.0).cpus
    assert [group["labels"] for group in cluster["workerGroupSpecs"]] == [{"pool": "data"}, {"pool": "gpu"}]
    images = {container(group)["image"] for group in groups(cluster).values()}
    assert images == {"IMAGE"}


def test_both_kubernetes_files_describe_the_same_cluster() -> None:
    assert read("kuberay-job.yaml")["spec"]["rayClusterSpec"] == read("kuberay-cluster.yaml")["spec"]
