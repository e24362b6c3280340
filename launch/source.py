"""What of this checkout travels to other machines: its present git revision, as an archive.

No git host is needed: the archive is made here and copied. A tree with local changes is refused,
or, when told so, travels as it lies, under the revision's name and "+dirty".
"""

import io
import subprocess
import tarfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


class SourceError(Exception):
    """The checkout cannot be shipped; the text says what to do."""


def revision(*, dirty: bool = False) -> str:
    """The commit that travels; raises SourceError where files differ from it, unless `dirty`."""
    try:
        commit = _git("rev-parse", "HEAD").strip()
    except (OSError, subprocess.CalledProcessError):
        message = f"{CHECKOUT} is no git checkout: clone the project and start from there"
        raise SourceError(message) from None
    changes = _git("status", "--porcelain").splitlines()
    if not changes:
        return commit
    if not dirty:
        shown = ", ".join(line[3:] for line in changes[:5]) + (", ..." if len(changes) > 5 else "")
        raise SourceError(
            f"the checkout differs from its commit ({shown}): commit, or add --dirty to ship it as "
            f"it lies"
        )
    return f"{commit}+dirty"


def archive(*, dirty: bool = False) -> bytes:
    """The files of `revision` as a gzipped tar; with `dirty` those that git does not ignore."""
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
