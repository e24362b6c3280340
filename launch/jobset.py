"""A run as a Kubernetes JobSet: an indexed Job for each TPU slice, or one for all GPU nodes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from command import WRONG_INPUT, MistakeError, lines

CONTAINER = "t5x-lite"
TOKEN = "t5x-lite/launch"  # the label of what a launch created
_PORT = 55527
_POOL_OF_ONE_SLICE = {
    "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
}
_TPU_PORTS = (8471, 8431)  # between hosts of a slice; metrics


class Machine(NamedTuple):
    """A kind of node: its names in GKE, and its chips."""

    resource: str
    selector: Mapping[str, str]
    per_node: int
    single_node: tuple[str, ...] = ()  # slices that consist of one node


def _tpu(name: str, *, single_node: tuple[str, ...] = ()) -> Machine:
    return Machine("google.com/tpu", {"cloud.google.com/gke-tpu-accelerator": name}, 4, single_node)


def _gpu(name: str) -> Machine:
    return Machine("nvidia.com/gpu", {"cloud.google.com/gke-accelerator": name}, 8)


MACHINES = {
    "v4": _tpu("tpu-v4-podslice"),
    "v5e": _tpu("tpu-v5-lite-podslice", single_node=("1x1", "2x2", "2x4")),
    "v5p": _tpu("tpu-v5p-slice"),
    "v6e": _tpu("tpu-v6e-slice", single_node=("1x1", "2x2", "2x4")),
    "a100": _gpu("nvidia-a100-80gb"),
    "h100": _gpu("nvidia-h100-80gb"),
    "h200": _gpu("nvidia-h200-141gb"),
}


class Values(NamedTuple):
    """The values that a manifest is rendered from."""

    name: str
    image: str
    accelerator: str  # as --topology of `t5x_lite plan`: v5e:8x8, h100:16
    arguments: Sequence[str]
    slices: int = 1
    spot: bool = False
    max_restarts: int = 1000
    mounts: Sequence[str] = ()  # BUCKET=/FOLDER
    secrets: Sequence[str] = ()  # Kubernetes secrets whose entries become variables
    service_account: str = "default"
    as_root: bool = False
    token: str = ""


class Shape(NamedTuple):
    """The nodes of a slice: their number and kind."""

    machine: Machine
    nodes: int  # of a slice
    per_node: int
    topology: str  # of TPUs


def shape_of(accelerator: str) -> Shape:
    """Return the nodes and their chips; raises MistakeError for unknown accelerators."""
    kind, _, size = accelerator.partition(":")
    machine = MACHINES.get(kind)
    sides = size.split("x")
    if machine is None or not all(side.isdecimal() and int(side) for side in sides):
        raise MistakeError(
            f"--accelerator={accelerator!r}: expected one of {', '.join(MACHINES)} with a size, as "
            f"in v5e:8x8, v5p:4x4x4 or h100:16"
        )
    chips = 1
    for side in sides:
        chips *= int(side)
    per_node = chips if size in machine.single_node else min(chips, machine.per_node)
    if chips % per_node:
        raise MistakeError(f"--accelerator={accelerator}: {kind} has {per_node} per node")
    topology = size if machine.resource == "google.com/tpu" else ""
    return Shape(machine, chips // per_node, per_node, topology)


def jobset(values: Values) -> dict[str, Any]:
    """Return the manifest."""
    shape = shape_of(values.accelerator)
    if values.slices > 1 and not shape.topology:
        raise MistakeError("--slices is for TPUs: give GPUs as one number, as in h100:32")
    pod = _pod(values, shape)
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": values.name,
            "labels": {TOKEN: values.token},
            "annotations": _POOL_OF_ONE_SLICE if shape.topology else {},
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": values.max_restarts,
                # A configuration error is not retried; everything else is.
                "rules": [
                    {
                        "name": "mistakes",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {
                    "name": "slice",
                    "replicas": values.slices,
                    "template": {"spec": _job(shape, pod)},
                }
            ],
        },
    }


def _job(shape: Shape, pod: Mapping[str, Any]) -> dict[str, Any]:
    exit_codes = {"containerName": CONTAINER, "operator": "In", "values": [WRONG_INPUT]}
    return {
        "parallelism": shape.nodes,
        "completions": shape.nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # when one pod ends, all end: the JobSet restarts them together
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": exit_codes}]},
        "template": pod,
    }


def _pod(values: Values, shape: Shape) -> dict[str, Any]:
    machine = shape.machine
    selector = dict(machine.selector)
    if shape.topology:
        selector["cloud.google.com/gke-tpu-topology"] = shape.topology
    if values.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    volumes, mounts = _volumes(values, shape)
    return {
        "metadata": {"annotations": {"gke-gcsfuse/volumes": "true"} if values.mounts else {}},
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": values.service_account,
            "terminationGracePeriodSeconds": 300,  # to save; Google allows less on spot nodes
            "nodeSelector": selector,
            "tolerations": [{"key": machine.resource, "operator": "Exists"}],
            "containers": [
                {
                    "name": CONTAINER,
                    "image": values.image,
                    "command": ["bash", "-c", literal(_script(values, shape))],
                    "env": _variables(values, shape),
                    "envFrom": [{"secretRef": {"name": name}} for name in values.secrets],
                    "ports": [
                        {"containerPort": port}
                        for port in (_TPU_PORTS if shape.topology else (_PORT,))
                    ],
                    "resources": {
                        "requests": {machine.resource: shape.per_node},
                        "limits": {machine.resource: shape.per_node},
                    },
                    "securityContext": _security(values),
                    "volumeMounts": mounts,
                }
            ],
            "volumes": volumes,
        },
    }


def _script(values: Values, shape: Shape) -> str:
    devices = shape.nodes * shape.per_node * values.slices
    first = ["ulimit -l 68719476736 || true"] if shape.topology else []  # TPUs lock memory
    return "\n".join([*first, *lines(values.arguments, devices=devices)])


def literal(text: str) -> str:
    """Escape text for Kubernetes, which would otherwise expand $(NAME)."""
    return text.replace("$", "$$")


def _security(values: Values) -> dict[str, Any]:
    if values.as_root:
        return {"runAsUser": 0, "privileged": True}
    return {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }


def _variables(values: Values, shape: Shape) -> list[dict[str, Any]]:
    """Return the variables that connect GPU processes; GKE connects TPU processes itself."""
    if shape.topology or shape.nodes == 1:
        return []
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    return [
        {
            "name": "JAX_COORDINATOR_ADDRESS",
            "value": f"{values.name}-slice-0-0.{values.name}:{_PORT}",
        },
        {"name": "JAX_NUM_PROCESSES", "value": str(shape.nodes)},
        {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}},
    ]


def _volumes(values: Values, shape: Shape) -> tuple[list[Any], list[Any]]:
    volumes, mounts = [], []
    for number, setting in enumerate(values.mounts):
        bucket, _, folder = setting.removeprefix("gs://").partition("=")
        if not bucket or not folder.startswith("/"):
            raise MistakeError(f"--mount {setting!r}: expected BUCKET=/FOLDER")
        attributes = {"bucketName": bucket, "mountOptions": "implicit-dirs,uid=1000,gid=1000"}
        driver = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}
        volumes.append({"name": f"bucket-{number}", "csi": driver})
        mounts.append({"name": f"bucket-{number}", "mountPath": folder})
    if not shape.topology:  # NCCL communicates through it
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    return volumes, mounts


def as_yaml(value: Any, indent: int = 0) -> str:
    """Format a manifest as YAML; strings are quoted as in JSON, which YAML reads alike."""
    return "\n".join(_yaml_lines(value, " " * indent)) + "\n"


def _yaml_lines(value: Any, space: str) -> Iterator[str]:
    for key, item in value.items() if isinstance(value, Mapping) else ((None, v) for v in value):
        mark = "- " if key is None else f"{_key(key)}:"
        if isinstance(item, Mapping | list) and item:
            inner = list(_yaml_lines(item, space + "  "))
            if key is None:  # the first line of an item follows its dash
                yield f"{space}- {inner[0].strip()}"
                yield from inner[1:]
            else:
                yield f"{space}{mark}"
                yield from inner
        else:
            text = json.dumps(item, ensure_ascii=False)
            yield f"{space}{mark}{text}" if key is None else f"{space}{mark} {text}"


def _key(key: str) -> str:
    return key if key.replace("-", "").replace("_", "").isalnum() else json.dumps(key)
