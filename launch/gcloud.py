"""The `gcloud` commands for a Cloud TPU VM pod, and how to fix its errors."""

import json
import re
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from shell import CommandError, Shell

# Images by the accelerator's generation (the "TPU software versions" page of Cloud TPU).
RUNTIMES = {
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
_CORES_COUNTED = ("v2", "v3", "v4", "v5p")  # v5p-16 is 8 chips, v5litepod-16 is 16
GONE = ("SUSPENDING", "SUSPENDED", "DELETING")  # preempted, or taken back
WAITING = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "STATE_UNSPECIFIED")
FIXES = {
    "no gcloud": "install the Google Cloud CLI (cloud.google.com/sdk/docs/install), then "
    "`gcloud auth login`",
    r"quota": "the project's quota for chips of this kind in this zone is too small: "
    "request more under IAM & Admin > Quotas (TPU API), or try another --zone, "
    "--spot or a smaller --accelerator_type",
    r"no more capacity|stockout|resources? (are|is) (currently )?(exhausted|unavailable)": "the "
    "zone has none available: the request stays queued with a larger --wait_hours; or try "
    "another --zone, --spot or --reserved",
    r"valid.?until|timed? ?out": "no capacity became available in time: raise --wait_hours, or "
    "try another --zone",
    r"SERVICE_DISABLED|has not been used in project|is disabled": "enable the API: gcloud "
    "services enable tpu.googleapis.com",
    r"PERMISSION_DENIED|does not have .*permission|Required '": "the account needs the roles TPU "
    "Admin and Service Account User in this project; `gcloud auth list` shows which account it is",
    r"auth login|active account|reauth|credentials": "sign in: gcloud auth login",
    r"ALREADY_EXISTS|already exists": "the name is used by something that this launcher did not "
    "create: choose another NAME",
    r"runtime.?version": "list the images: gcloud compute tpus tpu-vm versions list --zone=ZONE; "
    "give one with --runtime_version",
    r"accelerator.?type": "list the types of a zone: gcloud compute tpus accelerator-types list "
    "--zone=ZONE",
    r"publickey|ssh-add|Host key": "ssh was denied: run `ssh-add ~/.ssh/google_compute_engine`; "
    "with OS Login the account needs the role Compute OS Admin Login",
    r"Connection (refused|timed|closed|reset)|exit(ed)?.* 255": "a worker does not answer ssh: it "
    "may still be starting; if this does not change, allow tcp:22 in the network's firewall, or "
    "use --internal_ip",
}


class Request(NamedTuple):
    """What was requested of Google Cloud; saved in the launcher's record."""

    name: str
    project: str
    zone: str
    accelerator_type: str
    runtime_version: str
    slices: int
    kind: str  # "spot", "reserved" or "on_demand"
    network: str
    subnetwork: str
    service_account: str
    internal_ip: bool
    wait_hours: float
    token: str  # the label of the resources that this launch created

    @property
    def nodes(self) -> list[str]:
        """The names of the slices; each is one TPU node."""
        return node_names(self.name, self.slices)

    @property
    def chips(self) -> int:
        """The number of chips of all slices, from the accelerator's name."""
        kind, _, size = self.accelerator_type.rpartition("-")
        return int(size) // (2 if kind in _CORES_COUNTED else 1) * self.slices


def node_names(name: str, slices: int) -> list[str]:
    """Return the names that a queued resource gives its nodes: NAME-0, NAME-1 ..."""
    return [name] if slices == 1 else [f"{name}-{number}" for number in range(slices)]


class Gcloud:
    """The queued resource and the TPU VMs of one request."""

    def __init__(self, request: Request, shell: Shell):
        self.request, self.shell = request, shell
        self._where = [f"--zone={request.zone}"]
        if request.project:
            self._where.append(f"--project={request.project}")

    def create(self) -> None:
        """Request the slices; Google creates them when it has capacity."""
        r = self.request
        nodes = (
            [f"--node-id={r.name}"]
            if r.slices == 1
            else [f"--node-count={r.slices}", f"--node-prefix={r.name}"]
        )
        optional = {
            "--network": r.network,
            "--subnetwork": r.subnetwork,
            "--service-account": r.service_account,
        }
        self.shell.run(
            [
                *self._queued("create", r.name),
                *nodes,
                f"--accelerator-type={r.accelerator_type}",
                f"--runtime-version={r.runtime_version}",
                f"--labels=t5x_lite-launch={r.token}",
                f"--valid-until-duration={round(3600 * r.wait_hours)}s",
                *([] if r.kind == "on_demand" else [f"--{r.kind}"]),
                *(f"{flag}={value}" for flag, value in optional.items() if value),
                *(["--internal-ips"] if r.internal_ip else []),
                "--quiet",
            ]
        )

    def describe(self) -> dict[str, Any] | None:
        """Return Google's description of the queued resource; None if it does not exist."""
        command = [*self._queued("describe", self.request.name), "--format=json"]
        try:
            return json.loads(self.shell.run(command, quiet=True))
        except CommandError as error:
            if re.search(r"NOT_FOUND|not found", error.output):
                return None
            raise

    def node(self, name: str) -> dict[str, Any] | None:
        """Return Google's description of one TPU node; None if it does not exist."""
        command = [*self._vm("describe", name), "--format=json"]
        try:
            return json.loads(self.shell.run(command, quiet=True))
        except CommandError as error:
            if re.search(r"NOT_FOUND|not found", error.output):
                return None
            raise

    def delete(self) -> None:
        """Delete the queued resource with its nodes."""
        self.shell.run([*self._queued("delete", self.request.name), "--force", "--quiet"])

    def ssh(self, node: str, command: str, *, worker: str = "all", quiet: bool = False) -> str:
        """Run a line of shell on workers of a node; raises CommandError if one of them fails."""
        return self.shell.run(self.ssh_command(node, command, worker=worker), quiet=quiet)

    def ssh_command(self, node: str, command: str, *, worker: str) -> list[str]:
        """Return the words of the command `gcloud ... ssh`."""
        return [
            *self._vm("ssh", node),
            f"--worker={worker}",
            *self._address(),
            f"--command={command}",
        ]

    def copy_to(self, node: str, file: str, target: str) -> None:
        """Copy a file to all workers of a node."""
        self.shell.run(
            [*self._vm("scp", file), f"{node}:{target}", "--worker=all", *self._address()]
        )

    def copy_from(self, node: str, source: str, folder: str, *, worker: int) -> None:
        """Copy a file or folder from one worker."""
        self.shell.run(
            [
                *self._vm("scp", f"{node}:{source}"),
                *(folder, f"--worker={worker}", "--recurse"),
                *self._address(),
            ]
        )

    def _queued(self, verb: str, name: str) -> list[str]:
        return ["gcloud", "compute", "tpus", "queued-resources", verb, name, *self._where]

    def _vm(self, verb: str, name: str) -> list[str]:
        return ["gcloud", "compute", "tpus", "tpu-vm", verb, name, *self._where]

    def _address(self) -> list[str]:
        return ["--internal-ip"] if self.request.internal_ip else []


def labels(resource: dict[str, Any]) -> Sequence[dict[str, str]]:
    """Return the labels of every node that a queued resource requests."""
    specs = resource.get("tpu", {}).get("nodeSpec", [])
    return [spec.get("node", {}).get("labels", {}) for spec in specs]


def state(resource: dict[str, Any]) -> str:
    """Return the state of a queued resource: WAITING_FOR_RESOURCES, ACTIVE, SUSPENDED ..."""
    return resource.get("state", {}).get("state", "STATE_UNSPECIFIED")


def quoted(*words: str) -> str:
    """Quote words as one line of shell."""
    return shlex.join(words)
