"""Launchers as a user runs them, from a small checkout, with stand-ins for the clouds' programs."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent.parent
STAND_INS = Path(__file__).parent / "stand_ins"


class Ended(NamedTuple):
    """How a launcher ended and what it said."""

    code: int
    text: str


class Cloud:
    """A checkout, a cloud's state, and what the launchers did to it."""

    def __init__(self, folder):
        self.folder, self.state = folder, folder / "state"
        self.checkout = folder / "checkout"
        self.model_dir = folder / "model dir"
        self.state.mkdir()
        (self.checkout / "t5x_lite").mkdir(parents=True)
        shutil.copytree(ROOT / "launch", self.checkout / "launch")
        shutil.copy(ROOT / "pyproject.toml", self.checkout)
        shutil.copy(ROOT / ".gitignore", self.checkout)
        (self.checkout / "t5x_lite" / "code.py").write_text("revision = 1\n")
        self.git("init", "-q")
        self.git("add", ".")
        self.git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "Begin")
        self.environment = self._environment()

    def git(self, *words):
        subprocess.run(["git", *words], cwd=self.checkout, check=True)

    def _environment(self):
        """The launcher's own, and under WORKER_ what workers have."""
        tools = self.folder / "tools"  # an environment in which all is installed already
        (tools / "bin").mkdir(parents=True)
        for name in ("t5x_lite", "hostname"):
            (tools / "bin" / name).symlink_to(STAND_INS / name)
        (tools / "bin" / "python").symlink_to(sys.executable)
        fingerprint = subprocess.run(
            ["bash", "-c", '{ cat pyproject.toml; "$0" --version; } | cksum', sys._base_executable],
            cwd=self.checkout,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()[0]
        for extras in ("-tpu,fast", ""):
            (tools / f".installed-{fingerprint}{extras}").touch()
        path = f"{os.path.dirname(sys.executable)}:/usr/bin:/bin"
        return {
            "PATH": f"{STAND_INS}:{path}",
            "HOME": str(self.folder),
            "STAND_IN": str(self.state),
            "T5X_LITE_LAUNCHES": str(self.folder / "launches"),
            "WORKER_PATH": f"{STAND_INS}:{path}",
            "WORKER_PYTHON": sys._base_executable,  # an environment's own may have no pip
            "WORKER_T5X_LITE_VENV": str(tools),
            "WORKER_T5X_LITE_GRACE": "5",
            "WORKER_T5X_LITE_TAIL": "0.05",
        }

    def on_path(self):
        """For programs that call t5x_lite themselves: the stand-in comes first."""
        return {"PATH": f"{self.folder}/tools/bin:{self.environment['PATH']}"}

    def launch(self, script, *words, **environment):
        """Run a launcher to its end; nobody sits at its terminal."""
        done = subprocess.run(
            [sys.executable, "-S", "-E", str(self.checkout / "launch" / script), *words],
            cwd=self.checkout,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1200,
            check=False,
        )
        return Ended(done.returncode, done.stdout)

    def faults(self, *faults):
        (self.state / "faults.json").write_text(json.dumps(faults))

    def commands(self, *words):
        """The calls of the stand-ins that hold all of these words."""
        path = self.state / "commands"
        calls = (
            [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        )
        return [call for call in calls if all(word in call for word in words)]

    def resources(self):
        return sorted(path.stem for path in self.state.glob("resources/*.json"))

    def call_of(self, command, worker=0):
        """What reached t5x_lite on a worker."""
        return json.loads((self.model_dir / f"{command}-{worker}.json").read_text())

    def close(self):
        """End what a test that failed left running."""
        for pattern in ("pods/current/*/pid", "workers/*/t5x_lite/*/pid"):
            for pid in self.state.glob(pattern):
                if (pid.parent / "exit").exists():  # its number may be another's by now
                    continue
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(int(pid.read_text()), signal.SIGKILL)


@pytest.fixture
def cloud(tmp_path):
    """A cloud of one's own."""
    own = Cloud(tmp_path)
    yield own
    own.close()
