"""Commands of other programs: shown before they run, secrets blacked out, failures explained."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence


class CommandError(Exception):
    """A command failed; the text holds what it said and what to do about it."""

    def __init__(self, message: str, output: str = "", code: int = 1):
        super().__init__(message)
        self.output, self.code = output, code


class Shell:
    """Runs commands, or with `dry_run` only shows them.

    secrets: values that never appear in what is shown. cures: what to say of a failure, by a
    pattern of what the command printed. answers: what a dry run takes for the output of a command
    whose words contain all of a key's.
    """

    def __init__(
        self,
        *,
        dry_run: bool = False,
        secrets: Sequence[str] = (),
        cures: Mapping[str, str] | None = None,
        answers: Mapping[tuple[str, ...], str] | None = None,
    ):
        self.dry_run, self.secrets = dry_run, [s for s in secrets if s]
        self.cures, self.answers = cures or {}, answers or {}

    def say(self, text: str) -> None:
        """Print a line for the person at the launcher."""
        sys.stdout.write(f"{self.hide(text)}\n")  # in one piece: several threads speak
        sys.stdout.flush()

    def hide(self, text: str) -> str:
        """The text without secrets."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text

    def run(self, command: Sequence[str], *, check: bool = True, quiet: bool = False) -> str:
        """The command's output; CommandError where it fails, unless `check` is False.

        quiet: it only looks, and is asked again and again: show it in a dry run alone.
        """
        if self.dry_run or not quiet:
            self.say(f"$ {shlex.join(command)}")
        if self.dry_run:
            return self._answer(command)
        self._find(command[0])
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False
        )
        output = done.stdout + done.stderr
        if done.returncode and check:
            raise self.failure(command, output, done.returncode)
        if not quiet and (said := output.strip()):
            self.say(said)
        return output if done.returncode else done.stdout

    def start(self, command: Sequence[str]) -> "subprocess.Popen[str]":
        """A command whose output is read while it runs; its complaints go where ours go."""
        self.say(f"$ {shlex.join(command)}")
        self._find(command[0])
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
            bufsize=1,
        )

    def failure(self, command: Sequence[str], output: str, code: int) -> CommandError:
        """What is known of a command that failed: its last words, and the cure."""
        words = [line for line in output.splitlines() if line.strip()][-8:]
        text = "\n  ".join([f"{shlex.join(command[:6])} ... ended with {code}:", *words])
        for pattern, cure in self.cures.items():
            if re.search(pattern, output, re.IGNORECASE):
                text += f"\n=> {cure}"
                break
        return CommandError(self.hide(text), output, code)

    def _answer(self, command: Sequence[str]) -> str:
        for words, answer in self.answers.items():
            if all(any(word in part for part in command) for word in words):
                return answer
        return ""

    def _find(self, program: str) -> None:
        if shutil.which(program) is None:
            cure = self.cures.get(f"no {program}", f"install {program} and put it on PATH")
            raise CommandError(f"{program} is not installed\n=> {cure}", code=127)


def ask(question: str) -> bool:
    """A yes from the person at the terminal; no where nobody is there."""
    if not sys.stdin.isatty():
        return False
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
