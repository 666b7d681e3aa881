"""A copy of the checkout as it stands: the files that git tracks or would, and nothing built.

Of an unpacked sdist, which git does not know: all but what .gitignore names.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IS_GIT = (ROOT / ".git").exists() and shutil.which("git") is not None


def copy_to(folder: Path) -> Path:
    """Copy it."""
    if not IS_GIT:
        ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*ignored))
        return folder
    for name in names():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


def names() -> list[str]:
    """The files that git tracks or would."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
