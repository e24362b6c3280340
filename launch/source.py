"""The part of this checkout that is copied to other machines: its git revision, as an archive.

No git host is needed: the archive is made here and copied. A tree with local changes is refused or,
with `dirty`, copied with the changes, and its revision gets the suffix "+dirty".
"""

import io
import subprocess
import tarfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


class SourceError(Exception):
    """The checkout cannot be copied; the message describes how to fix it."""


def revision(*, dirty: bool = False) -> str:
    """Return the commit to copy; raises SourceError if files differ from it, unless `dirty`."""
    try:
        commit = _git("rev-parse", "HEAD").strip()
    except (OSError, subprocess.CalledProcessError):
        message = f"{CHECKOUT} is not a git checkout: clone the project and start from there"
        raise SourceError(message) from None
    changes = _git("status", "--porcelain").splitlines()
    if not changes:
        return commit
    if not dirty:
        shown = ", ".join(line[3:] for line in changes[:5]) + (", ..." if len(changes) > 5 else "")
        raise SourceError(
            f"the checkout differs from its commit ({shown}): commit, or add --dirty to copy it "
            f"with these changes"
        )
    return f"{commit}+dirty"


def archive(*, dirty: bool = False) -> bytes:
    """Return `revision` as a gzipped tar; with `dirty`, the files that git does not ignore."""
    if not dirty:
        return _git_bytes("archive", "--format=tar.gz", "HEAD")
    listed = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in filter(None, listed):
            if (CHECKOUT / name).exists():
                tar.add(CHECKOUT / name, arcname=name)
    return buffer.getvalue()


def _git(*arguments: str) -> str:
    return _git_bytes(*arguments).decode()


def _git_bytes(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, check=True)
    return done.stdout
