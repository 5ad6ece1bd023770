"""`--executor=kubernetes`: manifests that a cluster accepts and that run the points."""

import copy
import re

import kubernetes_validate
import processes
import pytest
import tiny
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

NAME = "toy.tiny"
KUBERNETES = "1.33"
"""The first version in which all that is used is stable."""
HOSTILE = (
    "two words",
    'it\'s "quoted"',
    "$(JOB_COMPLETION_INDEX) $$(HOME) $$ $HOME `id`; rm -rf *",
    "line\nbreak: [1, {2}] # no comment\n- 3",
    "- *alias &anchor !!tag |",
    "é 日本 \t %s \\n",
)


@pytest.fixture(scope="module")
def command(toy):
    """Runs launch.sweep with flags, to its end."""

    def run(*flags):
        chosen = (f"--experiment={NAME}", "--sweep=rates")
        return processes.fork("launch.sweep", *chosen, *flags, **toy).wait()

    return run


@pytest.fixture(scope="module")
def write(command):
    """Runs the sweep's command with flags; returns the objects of the manifest."""

    def run(*flags, mount="/runs"):
        told = command(*given(mount), *flags)
        assert told.code == 0, told
        return list(yaml.safe_load_all(told.stdout))

    return run


def given(mount="/runs"):
    return (
        "--executor=kubernetes",
        "--image=registry.example/project:1",
        "--claim=runs",
        f"--mount={mount}",
        f"--workdir={mount}",
    )


@pytest.fixture(scope="module")
def job(write):
    """The Indexed Job of the whole sweep."""
    (found,) = write("--max_parallel=3", "--cpus=4", "--memory=8Gi", "--gpus=2")
    return found


@pytest.fixture(scope="module")
def job_sets(write):
    """The JobSets of the whole sweep, with three hosts a point."""
    return write("--nodes=3", "--namespace=research")


def job_spec(job_set):
    (replicated,) = job_set["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def container_of(spec):
    (container,) = spec["template"]["spec"]["containers"]
    return container


def expanded(words, index):
    """What a kubelet makes of a container's words."""
    variables = {"JOB_COMPLETION_INDEX": str(index), "HOME": "/root"}

    def replace(match):
        return "$" if match[1] == "$" else variables.get(match[2], match[0])

    return [re.sub(r"\$(\$|\(([^)]*)\))", replace, word) for word in words]


def flags_of(spec, index):
    """The flags with which a Job's pod of this index runs launch.sweep."""
    container = container_of(spec)
    assert container["command"] == ["python"]
    module, name, *flags = expanded(container["args"], index)
    assert (module, name) == ("-m", "launch.sweep")
    return flags


# What a cluster accepts.


def validate_job(item):
    """Holds a Job against Kubernetes' schema, in which nothing unknown is allowed."""
    kubernetes_validate.validate(item, KUBERNETES, strict=True)


def validate_job_set(item):
    """Holds a JobSet against the models made from its definition, and its Jobs too."""
    kept = JobsetV1alpha2JobSet.from_dict(copy.deepcopy(item)).to_dict()
    if kept != item:
        raise ValueError("it has a field that the models do not know")
    metadata = {"name": "a-job"}
    head = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata}
    validate_job({**head, "spec": job_spec(item)})


def assert_accepted(spec):
    """Holds a Job's spec against what the documentation asks beyond the schema."""
    pod = spec["template"]["spec"]
    rules = spec["podFailurePolicy"]["rules"]
    assert spec["completionMode"] == "Indexed"
    assert 0 < spec["parallelism"] <= spec["completions"]
    assert pod["restartPolicy"] == "Never"
    assert all(("onExitCodes" in r) != ("onPodConditions" in r) for r in rules)
    if "FailIndex" in [rule["action"] for rule in rules]:
        assert "backoffLimitPerIndex" in spec
    for codes in filter(None, (rule.get("onExitCodes") for rule in rules)):
        assert codes["containerName"] == container_of(spec)["name"]
        assert codes["values"] == sorted(set(codes["values"]) - {0})
    mounted = {mount["name"] for mount in container_of(spec)["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def assert_a_label(name):
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name)
    assert len(name) <= 63


def action(spec, code=None, condition=None):
    """What becomes of a pod that ends so: the first rule that fits decides."""
    for rule in spec["podFailurePolicy"]["rules"]:
        if code in rule.get("onExitCodes", {}).get("values", ()):
            return rule["action"]
        if condition in [c["type"] for c in rule.get("onPodConditions", ())]:
            return rule["action"]
    return "Count"


def test_a_job_is_accepted(job):
    validate_job(job)
    assert_accepted(job["spec"])
    assert_a_label(f"{job['metadata']['name']}-99999-abcde")


def test_job_sets_are_accepted(job_sets):
    for item in job_sets:
        validate_job_set(item)
        assert_accepted(job_spec(item))
        assert_a_label(f"{item['metadata']['name']}-host-0-99-abcde")
        assert item["metadata"]["namespace"] == "research"
    assert len({item["metadata"]["name"] for item in job_sets}) == len(job_sets)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("completions",), "many"),
        (("podFailurePolicy", "rules", 0, "action"), None),
        (("template", "spec", "containers", 0, "arguments"), []),
        (("template", "spec", "containers", 0, "name"), None),
    ],
)
def test_the_schemas_refuse_what_is_broken(job, job_sets, path, value):
    for whole, check in ((job, validate_job), (job_sets[0], validate_job_set)):
        broken = copy.deepcopy(whole)
        inner = job_spec(broken) if whole is not job else broken["spec"]
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        with pytest.raises((kubernetes_validate.ValidationError, ValueError)):
            check(broken)


def test_the_models_refuse_a_broken_job_set(job_sets):
    for change in ({"maxRestart": 3}, {"maxRestarts": "often"}, {"rules": "none"}):
        broken = copy.deepcopy(job_sets[0])
        broken["spec"]["failurePolicy"] |= change
        with pytest.raises(ValueError):  # noqa: PT011
            validate_job_set(broken)


def test_names_are_labels_whatever_the_sweeps_are(write):
    for name in ("A" * 64, "7._-", "b--"):
        (item,) = write(f"--name={name}")
        validate_job(item)
        assert_a_label(f"{item['metadata']['name']}-99999-abcde")


# What the pods run.


def test_a_pod_a_point(job):
    spec = job["spec"]
    assert spec["completions"] == len(tiny.SWEEPS["rates"])
    assert spec["parallelism"] == 3
    flags = [flags_of(spec, index) for index in range(4)]
    assert [words[-1] for words in flags] == [f"--index={i}" for i in range(4)]
    assert not any("--points" in word for word in flags[0])


def test_pods_that_were_preempted_do_not_count(job, job_sets):
    for spec in (job["spec"], job_spec(job_sets[0])):
        assert action(spec, condition="DisruptionTarget") == "Ignore"
        assert [action(spec, code) for code in (75, 143)] == ["Ignore", "Ignore"]
        assert [action(spec, code) for code in (1, 134, 137)] == ["Count"] * 3
    assert job["spec"]["backoffLimitPerIndex"] == 3
    assert job_sets[0]["spec"]["failurePolicy"]["maxRestarts"] == 3


def test_a_mistake_is_not_tried_again(job, job_sets):
    assert action(job["spec"], 2) == "FailIndex"
    assert action(job_spec(job_sets[0]), 2) == "FailJob"
    (rule,) = job_sets[0]["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "FailJobSet"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_resources_and_grace(job):
    container = container_of(job["spec"])
    assert container["image"] == "registry.example/project:1"
    assert container["resources"] == {
        "requests": {"cpu": "4", "memory": "8Gi"},
        "limits": {"memory": "8Gi", "nvidia.com/gpu": 2},
    }
    assert {"name": "NPROC", "value": "4"} in container["env"]
    pod = job["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 120
    (claim,) = [v for v in pod["volumes"] if "persistentVolumeClaim" in v]
    assert claim["persistentVolumeClaim"] == {"claimName": "runs"}
    assert {"name": claim["name"], "mountPath": "/runs"} in container["volumeMounts"]


def test_the_hosts_of_a_point_find_each_other(job_sets):
    for number, item in enumerate(job_sets):
        spec, network = job_spec(item), item["spec"]["network"]
        assert network["enableDNSHostnames"]
        (replicated,) = item["spec"]["replicatedJobs"]
        assert (replicated["replicas"], spec["completions"]) == (1, 3)
        first = f"{item['metadata']['name']}-{replicated['name']}-0-0"
        for index in range(3):
            address, *count = flags_of(spec, index)[-3:]
            host = f"{first}.{network['subdomain']}"
            assert re.fullmatch(rf"--coordinator={re.escape(host)}:\d+", address)
            assert count == ["--processes=3", f"--process={index}"]
            assert f"--index={number}" in flags_of(spec, index)


def test_tpus_of_several_hosts(write):
    for topology, nodes, chips in (("4x4", 4, 4), ("2x4", 1, 8)):
        kind = ("--tpu_type=tpu-v6e-slice", f"--tpu_topology={topology}")
        (item,) = write(*kind, f"--nodes={nodes}", "--points=1")
        validate_job_set(item)
        spec = job_spec(item)
        assert spec["completions"] == nodes
        assert container_of(spec)["resources"]["limits"] == {"google.com/tpu": chips}
        assert spec["template"]["spec"]["nodeSelector"] == {
            "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
            "cloud.google.com/gke-tpu-topology": topology,
        }
        (pool,) = item["metadata"]["annotations"].values()
        assert pool == "cloud.google.com/gke-nodepool"


@pytest.mark.parametrize("nodes", [1, 2])
def test_values_pass_unharmed(write, nodes):
    value = " | ".join(HOSTILE)
    item = write(f"--data_dir={value}", f"--nodes={nodes}", "--points=0-3")[-1]
    spec = item["spec"] if nodes == 1 else job_spec(item)
    assert f"--data_dir={value}" in flags_of(spec, 0)


def test_the_same_command_writes_the_same_bytes(command):
    first, second = (command(*given(), "--nodes=2") for _ in range(2))
    assert first == second
    assert "&id" not in first.stdout


# Sweeps that have begun.


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_pods_run_what_is_left(write, command, tmp_path):
    (item,) = write("--points=1,3", mount=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert item["spec"]["completions"] == 2
    assert "--points=1,3" in flags_of(item["spec"], 0)
    told = command(*flags_of(item["spec"], 1)[2:])
    assert told.code == 0, told.stderr
    (done,) = tmp_path.glob(f"{NAME}/sweeps/rates/0*")
    assert done.name.startswith("0003-")
    assert (done / "DONE").exists()

    before = contents(tmp_path)
    (rest,) = write(mount=tmp_path)
    assert rest["spec"]["completions"] == 3
    assert "--points=0-2" in flags_of(rest["spec"], 0)
    assert rest["metadata"]["name"] != item["metadata"]["name"]
    assert rest["metadata"]["labels"] == item["metadata"]["labels"]
    shown = [command(*flags_of(rest["spec"], i)[2:], "--dry_run") for i in range(3)]
    for index, told in enumerate(shown):
        assert told.stdout.split()[-1] == f"--index={index}"

    told = command(*given(tmp_path), "--points=3")
    assert (told.code, told.stdout) == (0, "")
    assert "nothing is left" in told.stderr
    assert contents(tmp_path) == before


def test_points_that_were_added_are_passed_on(write):
    assert "--extend" in flags_of(write("--extend")[0]["spec"], 0)


# Mistakes.


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--image="], ["--image"]),
        (["--claim="], ["--claim"]),
        (["--claim=My_Claim"], ["--claim=My_Claim"]),
        (["--namespace=a.b"], ["--namespace=a.b"]),
        (["--memory=lots"], ["--memory=lots", "16Gi"]),
        (["--cpus=-1"], ["--cpus=-1"]),
        (["--workdir=runs"], ["--workdir=runs", "--mount=/runs"]),
        (["--workdir=/runs/../etc"], ["--workdir=/runs/../etc"]),
        (["--tpu_type=tpu-v6e-slice"], ["--tpu_topology"]),
        (
            ["--tpu_type=tpu-v6e-slice", "--tpu_topology=4x4", "--nodes=3"],
            ["--tpu_topology=4x4", "--nodes=3"],
        ),
        (["--nodes=2", "--max_parallel=2"], ["--max_parallel=2"]),
    ],
)
def test_mistakes_are_told_in_a_sentence(command, flags, words):
    told = command(*given(), *flags)
    assert (told.code, told.stdout) == (2, "")
    (line,) = told.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line
