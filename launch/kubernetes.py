"""`--executor=kubernetes`: writes a manifest for `kubectl apply -f -`; starts nothing.

Points that run on one host make one Indexed Job, a pod each. With several hosts a point
(`--nodes`), or on TPUs, each is a JobSet of its own, whose pods make one run. A pod
runs the point's ordinary command: what it leaves is on the claim, under `--workdir`.
"""

import math
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from dl_core.errors import UserError
from launch import app
from launch.point_numbers import numbers_text

if TYPE_CHECKING:
    from launch.points import Point, Sweep

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "image", None, "kubernetes: the image of the pods, in which this project is."
)
flags.DEFINE_string(
    "namespace", None, "kubernetes: the namespace (default: that of kubectl)."
)
flags.DEFINE_string(
    "claim", None, "kubernetes: the PersistentVolumeClaim that keeps the runs."
)
flags.DEFINE_string(
    "mount", "/runs", "kubernetes: where pods see the claim; --workdir is under it."
)
flags.DEFINE_integer("gpus", 0, "kubernetes: GPUs of each pod.", lower_bound=0)
flags.DEFINE_string("cpus", None, "kubernetes: cores of each pod, such as 8 or 500m.")
flags.DEFINE_string("memory", None, "kubernetes: memory of each pod, such as 16Gi.")
flags.DEFINE_string(
    "tpu_type", None, "kubernetes: on GKE, kind of TPU, such as tpu-v6e-slice."
)
flags.DEFINE_string(
    "tpu_topology", None, "kubernetes: on GKE, chips of a point's slice, such as 4x4."
)
flags.DEFINE_integer(
    "grace",
    120,
    "kubernetes: seconds that a pod has to save its state when it is told to go.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "max_retries",
    3,
    "kubernetes: how often a point that failed is tried again; pods that were "
    "preempted do not count.",
    lower_bound=0,
)

_INDEX = "$(JOB_COMPLETION_INDEX)"
"""Kubernetes puts a pod's number among those of its Job here."""
_SLUG = 32
"""Letters of a sweep in a name: with all that is added, a pod's has 63 at most."""
_PORT = 8476
_HOST, _CONTAINER = "host", "trial"
_ALONE = "alpha.jobset.sigs.k8s.io/exclusive-topology"
_LABEL = "dl-core/sweep"
_QUANTITY = r"\d+(\.\d+)?(m|k|[MGTPE]|[KMGTPE]i)?"
_DNS_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"


def run(sweep: "Sweep") -> int:
    """Writes the manifest of the points that are left; returns the exit code."""
    import yaml

    from launch.execute import say

    if FLAGS.tasks_per_node != 1:
        raise UserError(
            f"--tasks_per_node={FLAGS.tasks_per_node}: a pod has one process, which "
            "uses all of its --gpus"
        )
    objects = manifest(sweep)
    if not objects:
        say(f"{sweep.name}: nothing is left to run")
        return app.DONE
    yaml.safe_dump_all(objects, sys.stdout, sort_keys=False, width=math.inf)
    kinds = ",".join(sorted({f"{item['kind'].lower()}s" for item in objects}))
    scope = f" --namespace={FLAGS.namespace}" if FLAGS.namespace else ""
    say(f"end it: kubectl delete {kinds}{scope} --selector={_LABEL}={_label(sweep)}")
    return app.DONE


def manifest(sweep: "Sweep") -> list[dict[str, Any]]:
    """Returns the Kubernetes objects that run the points that are left.

    Raises:
      UserError: for a flag that is missing or does not fit.
    """
    _check()
    left = sweep.left()
    if FLAGS.nodes > 1 or FLAGS.tpu_type:
        return [_job_set(sweep, point) for point in left]
    return [_indexed_job(sweep, left)] if left else []


def _indexed_job(sweep: "Sweep", left: Sequence["Point"]) -> dict[str, Any]:
    """Returns a Job whose pod I runs the I-th of the points."""
    arguments = _arguments(sweep, _INDEX)
    if len(left) < len(sweep.points):
        arguments.append(f"--points={numbers_text(point.number for point in left)}")
    spec = {
        "completionMode": "Indexed",
        "completions": len(left),
        "parallelism": min(FLAGS.max_parallel or len(left), len(left)),
        "backoffLimitPerIndex": FLAGS.max_retries,
        "podFailurePolicy": _failure_policy("FailIndex"),
        "template": _pod(sweep, arguments),
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(sweep, _name(sweep, spec)),
        "spec": spec,
    }


def _job_set(sweep: "Sweep", point: "Point") -> dict[str, Any]:
    """Returns a JobSet whose pods are the processes of one point's run."""
    content = _job_set_spec(sweep, point, "")
    name = _name(sweep, content, f"{point.number:04d}")
    metadata = _metadata(sweep, name)
    if FLAGS.tpu_type:  # The pods of a point share a slice, and it with no one.
        metadata["annotations"] = {_ALONE: "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": _job_set_spec(sweep, point, name),
    }


def _job_set_spec(sweep: "Sweep", point: "Point", name: str) -> dict[str, Any]:
    """Returns what a JobSet of that name does.

    A pod that was preempted is replaced, and waits for the others. When one fails, the
    others cannot go on: all begin again from the last checkpoint.
    """
    nodes = FLAGS.nodes
    arguments = _arguments(sweep, point.number)
    if nodes > 1:
        arguments += [
            f"--coordinator={name}-{_HOST}-0-0.{name}:{_PORT}",
            f"--processes={nodes}",
            f"--process={_INDEX}",
        ]
    job = {
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        "backoffLimit": 0,
        "podFailurePolicy": _failure_policy("FailJob"),
        "template": _pod(sweep, arguments),
    }
    misused = {
        "name": "misused",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    return {
        "network": {"enableDNSHostnames": True, "subdomain": name},
        "failurePolicy": {"maxRestarts": FLAGS.max_retries, "rules": [misused]},
        "replicatedJobs": [{"name": _HOST, "replicas": 1, "template": {"spec": job}}],
    }


def _failure_policy(misused: str) -> dict[str, Any]:
    """Returns which ends of a pod are not counted, and which is final."""

    def codes(*values: int) -> dict[str, Any]:
        return {"containerName": _CONTAINER, "operator": "In", "values": list(values)}

    # One that SIGTERM ended while it was importing has nothing to save, and leaves with
    # 143; one whose point another process holds waits until that has ended.
    again = codes(app.PREEMPTED, app.LOCKED, 143)
    disrupted = {"type": "DisruptionTarget", "status": "True"}
    return {
        "rules": [
            {"action": "Ignore", "onPodConditions": [disrupted]},
            {"action": "Ignore", "onExitCodes": again},
            {"action": misused, "onExitCodes": codes(app.MISUSED)},
        ]
    }


def _arguments(sweep: "Sweep", index: object) -> list[str]:
    """Returns a point's command, but for python itself.

    Kubernetes reads "$(NAME)" as a variable and "$$" as "$", so each "$" is doubled.
    """
    from launch import commands

    _, *words, last = commands.of_point(sweep, index)
    extend = ["--extend"] if FLAGS.extend else []  # The pod writes the sweep down.
    return [*(word.replace("$", "$$") for word in words), *extend, last]


def _pod(sweep: "Sweep", arguments: list[str]) -> dict[str, Any]:
    """Returns the template of a pod that runs python with the arguments."""
    volumes = [{"name": "runs", "persistentVolumeClaim": {"claimName": FLAGS.claim}}]
    mounts = [{"name": "runs", "mountPath": FLAGS.mount}]
    if FLAGS.gpus > 1:  # GPUs exchange arrays through it; a pod has 64 MiB else.
        volumes.append({"name": "shared", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "shared", "mountPath": "/dev/shm"})
    container = {
        "name": _CONTAINER,
        "image": FLAGS.image,
        "command": ["python"],
        "args": arguments,
        "resources": _resources(),
        "volumeMounts": mounts,
    }
    if FLAGS.cpus and FLAGS.cpus.isdecimal():  # As a process sees all of the node's.
        names = ("NPROC", "OMP_NUM_THREADS")
        container["env"] = [{"name": name, "value": FLAGS.cpus} for name in names]
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": FLAGS.grace,
        "automountServiceAccountToken": False,
        "containers": [container],
        "volumes": volumes,
    }
    if FLAGS.tpu_type:
        spec["nodeSelector"] = {
            "cloud.google.com/gke-tpu-accelerator": FLAGS.tpu_type,
            "cloud.google.com/gke-tpu-topology": FLAGS.tpu_topology,
        }
    return {"metadata": {"labels": {_LABEL: _label(sweep)}}, "spec": spec}


def _resources() -> dict[str, Any]:
    requests = {"cpu": FLAGS.cpus, "memory": FLAGS.memory}
    limits = {"memory": FLAGS.memory, "nvidia.com/gpu": FLAGS.gpus}
    if FLAGS.tpu_type:
        limits["google.com/tpu"] = _chips() // FLAGS.nodes
    return {
        kind: {name: amount for name, amount in amounts.items() if amount}
        for kind, amounts in {"requests": requests, "limits": limits}.items()
    }


def _metadata(sweep: "Sweep", name: str) -> dict[str, Any]:
    scope = {"namespace": FLAGS.namespace} if FLAGS.namespace else {}
    return {"name": name, **scope, "labels": {_LABEL: _label(sweep)}}


def _label(sweep: "Sweep") -> str:
    """Returns what all objects of a sweep have in common, whenever they were made."""
    return _name(sweep, str(sweep.folder))


def _name(sweep: "Sweep", content: object, *more: str) -> str:
    """Returns a DNS label for an object: other content has another name."""
    from dl_core.config import fingerprint

    text = f"{sweep.experiment.name}-{sweep.folder.name}".lower()
    slug = re.sub(r"^[^a-z]+", "", re.sub(r"[^a-z0-9]+", "-", text))
    slug = slug[:_SLUG].strip("-") or "sweep"
    return "-".join([slug, fingerprint(content), *more])


def _chips() -> int:
    return math.prod(map(int, FLAGS.tpu_topology.split("x")))


def _check() -> None:
    """Refuses flags that make no manifest, or one that a cluster would not run."""
    for name, what in (
        ("image", "the image in which this project is"),
        ("claim", "the PersistentVolumeClaim that keeps the runs"),
    ):
        if not FLAGS[name].value:
            raise UserError(f"--{name} is missing: {what}")
    for name, pattern, what in (
        ("image", r"\S+", "the name of an image"),
        ("namespace", _DNS_LABEL, "the name of a namespace"),
        ("claim", rf"{_DNS_LABEL}(\.{_DNS_LABEL})*", "the name of a claim"),
        ("mount", r"/[^:\0]*", "a path from the root, without ':'"),
        ("cpus", _QUANTITY, "a number of cores, such as 8 or 500m"),
        ("memory", _QUANTITY, "an amount of memory, such as 16Gi"),
        ("tpu_type", _DNS_LABEL, "a kind of TPU, such as tpu-v6e-slice"),
        ("tpu_topology", r"[1-9]\d*(x[1-9]\d*){1,2}", "chips, such as 4x4 or 2x2x2"),
    ):
        value = FLAGS[name].value
        if value is not None and not re.fullmatch(pattern, value):
            raise UserError(f"--{name}={value}: expected {what}")
    for name in ("workdir", "config"):
        path = pathlib.PurePosixPath(FLAGS[name].value or FLAGS.mount)
        if ".." in path.parts or not path.is_relative_to(FLAGS.mount):
            raise UserError(
                f"--{name}={path}: expected a path under --mount={FLAGS.mount}, which "
                "is all that pods see"
            )
    if (FLAGS.tpu_type is None) != (FLAGS.tpu_topology is None):
        raise UserError("--tpu_type and --tpu_topology go together")
    if FLAGS.tpu_type and _chips() % FLAGS.nodes:
        raise UserError(
            f"--tpu_topology={FLAGS.tpu_topology}: its {_chips()} chips are not shared "
            f"evenly by --nodes={FLAGS.nodes}"
        )
    if FLAGS.max_parallel and (FLAGS.nodes > 1 or FLAGS.tpu_type):
        raise UserError(
            f"--max_parallel={FLAGS.max_parallel}: bounds points of one host; where "
            "each is a JobSet, the cluster's queue does"
        )
