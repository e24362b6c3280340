"""Run other programs: show commands before they run, mask secrets, explain failures."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence


class CommandError(Exception):
    """A command failed; the message contains its last output and how to fix it."""

    def __init__(self, message: str, output: str = "", code: int = 1):
        super().__init__(message)
        self.output, self.code = output, code


class Shell:
    """Runs commands, or with `dry_run` only shows them.

    Args:
        dry_run: Show commands and run none.
        secrets: Values that are masked in everything that is shown.
        fixes: How to fix a failure, by a pattern of the command's output.
        answers: Assumed outputs of commands in a dry run; a command matches if its words contain
            all words of the key.
    """

    def __init__(
        self,
        *,
        dry_run: bool = False,
        secrets: Sequence[str] = (),
        fixes: Mapping[str, str] | None = None,
        answers: Mapping[tuple[str, ...], str] | None = None,
    ):
        self.dry_run, self.secrets = dry_run, [s for s in secrets if s]
        self.fixes, self.answers = fixes or {}, answers or {}

    def say(self, text: str) -> None:
        """Print a line."""
        sys.stdout.write(f"{self.hide(text)}\n")  # in one piece: several threads print
        sys.stdout.flush()

    def hide(self, text: str) -> str:
        """Return the text with secrets masked."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text

    def run(self, command: Sequence[str], *, check: bool = True, quiet: bool = False) -> str:
        """Run a command and return its output.

        Args:
            command: The words of the command.
            check: Raise an error if the command fails.
            quiet: Show the command only in a dry run, because it only reads and is repeated often.

        Raises:
            CommandError: The command failed, and `check` is set.
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
        if not quiet and output.strip():
            self.say(output.strip())
        return output if done.returncode else done.stdout

    def start(self, command: Sequence[str]) -> "subprocess.Popen[str]":
        """Start a command whose output is read while it runs; its stderr is ours."""
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
        """Return the error of a command that failed: its last lines, and how to fix it."""
        words = [line for line in output.splitlines() if line.strip()][-8:]
        text = "\n  ".join([f"{shlex.join(command[:6])} ... ended with {code}:", *words])
        for pattern, fix in self.fixes.items():
            if re.search(pattern, output, re.IGNORECASE):
                text += f"\n=> {fix}"
                break
        return CommandError(self.hide(text), output, code)

    def _answer(self, command: Sequence[str]) -> str:
        for words, answer in self.answers.items():
            if all(any(word in part for part in command) for word in words):
                return answer
        return ""

    def _find(self, program: str) -> None:
        if shutil.which(program) is None:
            fix = self.fixes.get(f"no {program}", f"install {program} and put it on PATH")
            raise CommandError(f"{program} is not installed\n=> {fix}", code=127)


def ask(question: str) -> bool:
    """Ask a yes-or-no question on the terminal; False without a terminal."""
    if not sys.stdin.isatty():
        return False
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
