"""The image and the KubeRay manifest, checked against this checkout without a cluster.

What a cluster alone can tell is left to it; what drifts silently is here: fields KubeRay would ignore, versions that
must agree, mounts, the configuration the manifest carries, files the image needs, and that no port is published.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import facescale
from facescale.config.job import JobConfig
from facescale.config.load import load_config

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Fields of the ray.io/v1 API (ray-operator/apis/ray/v1 of KubeRay 1.4) that the manifest may use. The API server
# drops a field that it does not know, so that a misspelled one would have no effect and no message.
RAYJOB_FIELDS = {
    "activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate", "metadata", "clusterSelector",
    "submitterConfig", "entrypoint", "runtimeEnvYAML", "submissionMode", "entrypointNumCpus", "entrypointNumGpus",
    "ttlSecondsAfterFinished", "shutdownAfterJobFinishes", "suspend",
}  # fmt: skip
CLUSTER_FIELDS = {
    "headGroupSpec",
    "workerGroupSpecs",
    "rayVersion",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
}
HEAD_FIELDS = {"serviceType", "rayStartParams", "template"}
WORKER_FIELDS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


def cpu_documents() -> list[dict[str, Any]]:
    """The manifest as it is."""
    return list(yaml.safe_load_all((CLUSTER / "rayjob.yaml").read_text(encoding="utf-8")))


def gpu_documents() -> list[dict[str, Any]]:
    """The manifest with the patches of cluster/gpu applied, as kustomize does."""
    overlay = yaml.safe_load((CLUSTER / "gpu" / "kustomization.yaml").read_text(encoding="utf-8"))
    (resource,) = overlay["resources"]
    documents = list(yaml.safe_load_all((CLUSTER / "gpu" / resource).read_text(encoding="utf-8")))
    documents = [yaml.safe_load(yaml.safe_dump(document)) for document in documents]
    for patch in overlay["patches"]:
        (document,) = [
            d
            for d in documents
            if (d["kind"], d["metadata"]["name"]) == (patch["target"]["kind"], patch["target"]["name"])
        ]
        for operation in yaml.safe_load(patch["patch"]):
            apply(document, operation)
    return documents


def apply(document: Any, operation: dict[str, Any]) -> None:
    """One operation of JSON Patch (RFC 6902), add or replace, in place."""
    *path, last = [step.replace("~1", "/").replace("~0", "~") for step in operation["path"].split("/")[1:]]
    for step in path:
        document = document[int(step) if isinstance(document, list) else step]
    assert (last in document) == (operation["op"] == "replace"), operation
    document[last] = operation["value"]


@pytest.fixture(params=["cpu", "gpu"])
def documents(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return cpu_documents() if request.param == "cpu" else gpu_documents()


def of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The only document of a kind."""
    (document,) = [document for document in documents if document["kind"] == kind]
    return document


def pod_specs(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Pod specs of the submitter, the head and the workers."""
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    return {
        "submitter": spec["submitterPodTemplate"]["spec"],
        "head": cluster["headGroupSpec"]["template"]["spec"],
        **{group["groupName"]: group["template"]["spec"] for group in cluster["workerGroupSpecs"]},
    }


def pinned(name: str) -> str:
    """The version of a package in constraints.txt."""
    match = re.search(
        rf"^{name}==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert match
    return match[1]


def walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and its value, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)


def test_rayjob_has_what_kuberay_needs_and_nothing_it_ignores(documents: list[dict[str, Any]]) -> None:
    job = of_kind(documents, "RayJob")
    assert job["apiVersion"] == "ray.io/v1"
    assert set(job["spec"]) <= RAYJOB_FIELDS
    assert {"entrypoint", "rayClusterSpec", "backoffLimit", "shutdownAfterJobFinishes"} <= set(job["spec"])
    assert job["spec"]["backoffLimit"] > 0  # submitting again is the resume
    cluster = job["spec"]["rayClusterSpec"]
    assert set(cluster) <= CLUSTER_FIELDS
    assert set(cluster["headGroupSpec"]) == HEAD_FIELDS
    for group in cluster["workerGroupSpecs"]:
        assert set(group) == WORKER_FIELDS
        assert 0 < group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        # rayStartParams is a map of strings: a bare number is refused by the API server.
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    runtime_env = yaml.safe_load(job["spec"]["runtimeEnvYAML"])
    assert set(runtime_env) == {"env_vars"}
    assert all(isinstance(value, str) for value in runtime_env["env_vars"].values())


def test_versions_agree(documents: list[dict[str, Any]]) -> None:
    job = of_kind(documents, "RayJob")
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == pinned("ray")
    images = {spec["containers"][0]["image"] for spec in pod_specs(job).values()}
    assert len(images) == 1, "submitter, head and workers must run the same Ray and Python"
    assert images.pop().partition(":")[2].removesuffix("-gpu") == facescale.__version__


def test_only_the_head_has_no_cpus_for_actors(documents: list[dict[str, Any]]) -> None:
    cluster = of_kind(documents, "RayJob")["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert "num-cpus" not in group["rayStartParams"]  # KubeRay takes it from the limits
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert int(limits["cpu"]) >= 1


def test_entrypoint_runs_here(documents: list[dict[str, Any]]) -> None:
    command = shlex.split(of_kind(documents, "RayJob")["spec"]["entrypoint"])
    python, flag, module, *arguments = command
    assert (python, flag) == ("python", "-m")
    # A file that is not there: the module exists, takes its flags, and says so with the exit code of a wrong command.
    missing = [*arguments[:-1], str(ROOT / "cluster" / "absent.yaml")]
    done = subprocess.run(
        [sys.executable, "-m", module, *missing], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "absent.yaml" in done.stderr


def test_configuration_is_valid_and_inside_the_mounts(
    documents: list[dict[str, Any]], tmp_path: Path
) -> None:
    job, config_map = of_kind(documents, "RayJob"), of_kind(documents, "ConfigMap")
    path = Path(shlex.split(job["spec"]["entrypoint"])[-1])
    written = tmp_path / path.name
    written.write_text(config_map["data"][path.name], encoding="utf-8")
    config = load_config(JobConfig, file=str(written))
    for name in ("head", "workers"):
        spec = pod_specs(job)[name]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        mounts = {mount["mountPath"]: mount for mount in spec["containers"][0]["volumeMounts"]}
        assert {mount["name"] for mount in mounts.values()} == set(volumes)
        mounted = volumes[mounts[str(path.parent)]["name"]]
        assert mounted["configMap"]["name"] == config_map["metadata"]["name"]
        assert config.src in mounts and mounts[config.src]["readOnly"] is True
        claim = volumes[mounts[config.lake]["name"]]["persistentVolumeClaim"]["claimName"]
        assert claim == of_kind(documents, "PersistentVolumeClaim")["metadata"]["name"]
        assert "readOnly" not in mounts[config.lake]
    # Workers on several nodes write it.
    assert of_kind(documents, "PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteMany"]


def test_device_matches_the_resources() -> None:
    for documents, device, gpus in ((cpu_documents(), "cpu", None), (gpu_documents(), "cuda", "1")):
        config = yaml.safe_load(of_kind(documents, "ConfigMap")["data"]["extract.yaml"])
        assert config["engine"]["device"] == device
        resources = pod_specs(of_kind(documents, "RayJob"))["workers"]["containers"][0]["resources"]
        assert resources["limits"].get("nvidia.com/gpu") == gpus
        assert resources["requests"] == resources["limits"]


def test_nothing_is_published(documents: list[dict[str, Any]]) -> None:
    assert {document["kind"] for document in documents} == {
        "ConfigMap", "PersistentVolumeClaim", "NetworkPolicy", "RayJob",
    }  # fmt: skip
    found = list(walk(documents))
    keys = {key for key, _ in found}
    assert not keys & {
        "enableIngress",
        "hostNetwork",
        "hostPort",
        "nodePort",
        "headService",
        "headServiceAnnotations",
    }
    assert [value for key, value in found if key == "serviceType"] == ["ClusterIP"]
    assert not re.search(r"^\s*EXPOSE\b", (CLUSTER / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)


def test_network_policy_covers_every_pod(documents: list[dict[str, Any]]) -> None:
    policy = of_kind(documents, "NetworkPolicy")["spec"]
    label = policy["podSelector"]["matchLabels"]
    assert policy["policyTypes"] == ["Ingress"]
    spec = of_kind(documents, "RayJob")["spec"]
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    for template in (spec["submitterPodTemplate"], *(group["template"] for group in groups)):
        assert template["metadata"]["labels"].items() >= label.items()
    (rule,) = policy["ingress"]
    assert {"podSelector": {"matchLabels": label}} in rule["from"]
    assert all("podSelector" in peer for peer in rule["from"])  # no whole namespaces, no address ranges


def test_pods_run_unprivileged(documents: list[dict[str, Any]]) -> None:
    for name, spec in pod_specs(of_kind(documents, "RayJob")).items():
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        (container,) = spec["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
        assert container["resources"]["limits"]["memory"], name


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's (instruction, arguments), continued lines joined, comments left out."""
    text = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]  # type: ignore[misc]


def test_image_gets_what_the_package_is_built_from() -> None:
    copied = [
        source
        for name, arguments in instructions()
        if name == "COPY" and not arguments.startswith("--from=")
        for source in arguments.split()[:-1]
    ]
    for source in copied:
        assert (ROOT / source).exists(), f"Dockerfile copies {source}"
    ignore = (CLUSTER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert sorted(line[1:] for line in ignore if line.startswith("!")) == sorted(copied)
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"][
        "targets"
    ]
    needed = {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], "constraints.txt"}
    needed |= {*wheel["wheel"]["packages"], *wheel["wheel"]["force-include"]}
    assert needed <= set(copied)


def test_image_installs_the_tested_versions_and_real_extras() -> None:
    arguments = dict(a.partition("=")[::2] for name, a in instructions() if name == "ARG")
    assert Version(arguments["PYTHON_VERSION"]) in SpecifierSet(PROJECT["requires-python"])
    assert set(arguments["EXTRAS"].split(",")) <= set(PROJECT["optional-dependencies"])
    installs = [a for name, a in instructions() if name == "RUN" and "pip install" in a]
    assert installs and all("-c constraints.txt" in install for install in installs)
    documented = re.findall(r"EXTRAS=([\w,-]+)", (CLUSTER / "Dockerfile").read_text(encoding="utf-8"))
    documented += re.findall(r"EXTRAS=([\w,-]+)", (CLUSTER / "README.md").read_text(encoding="utf-8"))
    for extras in documented:
        assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"]), extras
    ray = next(r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "ray")
    assert "default" in ray.extras  # the job server and the dashboard agent that `ray job submit` talks to


def test_image_ends_as_an_ordinary_user() -> None:
    users = [arguments for name, arguments in instructions() if name == "USER"]
    assert users and users[-1].isdigit() and int(users[-1]) > 0  # runAsNonRoot can check numbers only
    for spec in pod_specs(of_kind(cpu_documents(), "RayJob")).values():
        assert spec["securityContext"]["runAsUser"] == int(users[-1])


def test_image_has_what_kuberay_calls() -> None:
    """Its probes run wget inside the container; a slim base image has none."""
    *_, last_stage = "\n".join(" ".join(pair) for pair in instructions()).split("\nFROM ")
    assert re.search(r"apt-get install .*\bwget\b", last_stage)
