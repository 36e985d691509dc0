"""What git knows of a file, and who works there; git is asked, never needed."""

from __future__ import annotations

import getpass
import subprocess
from pathlib import Path


def commit_of(path: Path) -> str | None:
    """The commit that a file, or a folder, is kept under, and whether it differs from it; None for none."""
    folder, name = path.absolute().parent, path.name
    head = _git(folder, "rev-parse", "HEAD")
    if head is None or _git(folder, "ls-files", "--error-unmatch", "--", name) is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--", name)
    if changed is None:
        return f"{head}, perhaps changed since"
    return f"{head}, changed since" if changed else head


def author_of(folder: Path) -> str | None:
    """Who makes commits in a folder, else who is logged in; None where nobody is known."""
    name, address = (_git(folder, "config", f"user.{key}") for key in ("name", "email"))
    if name:
        return f"{name} <{address}>" if address else name
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers; None where it knows nothing, or is not there."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace").strip()
