"""Scripts, Dockerfiles and manifests under the linters and schemas of others (extra [lint])."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
LAUNCH = ROOT / "launch"
SHELL = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*LAUNCH.rglob("*.sh"), *LAUNCH.rglob("*.sbatch"), ROOT / "tests" / "run.sh"]
)
DOCKERFILES = sorted(path.name for path in LAUNCH.glob("docker/*.Dockerfile"))
YAML_RULES = "{extends: default, rules: {line-length: {max: 100}, document-start: disable}}"
MANIFEST_RULES = YAML_RULES.replace("{max: 100}", "disable").replace(
    "disable}}", "disable, quoted-strings: disable}}"
)
KUBERNETES = ("1.31", "1.37")  # of GKE's channels: the oldest meant and the newest known

_TEXT, _COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
# JobSet v1alpha2, transcribed from its published types (kubernetes-sigs/jobset,
# api/jobset/v1alpha2/jobset_types.go): no package ships the schema. Fields that no launcher uses
# are left out, and so refused.
JOBSET = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["replicatedJobs"],
            "properties": {
                "failurePolicy": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "maxRestarts": _COUNT,
                        "rules": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "additionalProperties": False,
                                "required": ["name", "action"],
                                "properties": {
                                    "name": {"pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
                                    "action": {
                                        "enum": [
                                            "FailJobSet",
                                            "RestartJobSet",
                                            "RestartJobSetAndIgnoreMaxRestarts",
                                            "RestartJob",
                                            "RestartJobAndIgnoreMaxRestarts",
                                        ]
                                    },
                                    "onJobFailureReasons": {
                                        "type": "array",
                                        "uniqueItems": True,
                                        "items": _TEXT,
                                    },
                                },
                            },
                        },
                    },
                },
                "replicatedJobs": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["name", "template"],
                        "properties": {
                            "name": _TEXT,
                            "replicas": _COUNT,
                            "template": {"type": "object", "required": ["spec"]},
                        },
                    },
                },
            },
        },
    },
}
MANIFESTS = [
    ["--accelerator=v5e:8x8", "--slices=2", "--spot", "--mount=my-bucket=/mnt/my-bucket"],
    ["--accelerator=v5e:2x4", "--secret=tokens", "--as_root"],
    ["--accelerator=v5p:4x4x4", "--service_account=trainer"],
    ["--accelerator=v6e:16x16"],
    ["--accelerator=h100:16", "--mount=my-bucket=/mnt/my-bucket"],
    ["--accelerator=a100:8"],
]


def render(flags):
    train = ["train", "--gin.A=$(B) 'c'"]
    words = ["render", "demo", "--image=registry/image:1", *flags, "--", *train]
    done = subprocess.run(
        [sys.executable, LAUNCH / "gke.py", *words], capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.lint
@pytest.mark.parametrize("script", SHELL)
def test_shell_scripts_pass_shellcheck(script):
    done = subprocess.run(
        ["shellcheck", "-x", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.lint
@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfiles_pass_hadolint(name):
    done = subprocess.run(
        ["hadolint", LAUNCH / "docker" / name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.lint
def test_yaml_passes_yamllint(tmp_path):
    (tmp_path / "manifest.yaml").write_text(render(MANIFESTS[0]))
    for rules, path in ((YAML_RULES, LAUNCH / "sky.yaml"), (MANIFEST_RULES, tmp_path)):
        done = subprocess.run(
            ["yamllint", "--strict", "-d", rules, path], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.lint
@pytest.mark.parametrize("flags", MANIFESTS, ids=" ".join)
def test_manifests_fit_the_published_schemas(flags):
    import jsonschema
    import kubernetes_validate
    import yaml

    found = yaml.safe_load(render(flags))
    jsonschema.validate(found, JOBSET)
    for replicated in found["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "demo"}}
        for version in KUBERNETES:
            kubernetes_validate.validate({**job, **replicated["template"]}, version, strict=True)


@pytest.mark.lint
def test_a_manifest_with_a_field_that_does_not_exist_is_refused():
    import jsonschema
    import kubernetes_validate
    import yaml

    found = yaml.safe_load(render(MANIFESTS[0]))
    job = found["spec"]["replicatedJobs"][0]["template"]
    job["spec"]["template"]["spec"]["nodeSelectors"] = {}
    whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "demo"}, **job}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(whole, KUBERNETES[0], strict=True)
    found["spec"]["failurePolicies"] = {}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, JOBSET)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_install_what_is_pinned_with_hashes_and_run_as_a_user(name):
    kind = name.removesuffix(".Dockerfile")
    text = (LAUNCH / "docker" / name).read_text()
    assert f"COPY launch/docker/requirements-{kind}.txt" in text
    assert "--require-hashes" in text
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE) == ["1000"]
    pins = (LAUNCH / "docker" / f"requirements-{kind}.txt").read_text()
    entries = re.split(r"\n(?=\S)", pins.split("\n", 2)[2])
    assert len(entries) > 50
    for entry in entries:
        pinned = r"[\w.\[\]-]+==\S+( ; .+)? \\\n    --hash=sha256:[0-9a-f]{64}"
        assert re.match(pinned, entry), entry


@pytest.mark.parametrize("kind", ["tpu", "gpu", "cpu"])
def test_every_dependency_of_the_project_is_pinned(kind):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["fast"]]
    names = {re.match(r"[\w.-]+", each)[0].lower().replace("_", "-") for each in wanted}
    pins = (LAUNCH / "docker" / f"requirements-{kind}.txt").read_text()
    pinned = {name.lower() for name in re.findall(r"^([\w.-]+)(?:\[.*\])?==", pins, re.MULTILINE)}
    assert names <= pinned
    accelerator = {"tpu": "libtpu", "gpu": "jax-cuda12-plugin", "cpu": "jaxlib"}[kind]
    assert accelerator in pinned


def test_the_sky_task_names_what_skypilot_knows():
    """Keys of skypilot 0.14's task schema; the cure for 75 is its own restart."""
    import yaml

    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    known = {"name", "num_nodes", "resources", "envs", "workdir", "file_mounts", "setup", "run"}
    assert set(task) <= known
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]


@pytest.mark.parametrize("part", ["setup", "run"])
def test_the_shell_in_the_sky_task_is_shell(part):
    import yaml

    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    subprocess.run(["bash", "-n"], input=task[part], text=True, check=True)
