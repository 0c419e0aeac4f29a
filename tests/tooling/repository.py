"""What is in the repository, for the tests about it."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ROOT / "pyclient" / "resultd" / "v1"


@functools.cache
def tracked_files() -> tuple[Path, ...]:
    """Every tracked file that is there; skips the test where that cannot be known."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    paths = (ROOT / name for name in listed.stdout.split("\0") if name)
    return tuple(path for path in paths if path.is_file())


@functools.cache
def tracked_texts() -> dict[str, str]:
    """The text of every tracked file that is text, by its path from the root."""
    texts = {}
    for path in tracked_files():
        data = path.read_bytes()
        if b"\0" not in data:
            texts[str(path.relative_to(ROOT))] = data.decode()
    return texts


def lines_matching(pattern: str) -> list[str]:
    """`path:line: text` of every tracked line the pattern is found in."""
    wanted = re.compile(pattern)
    return [
        f"{path}:{number}: {line.strip()}"
        for path, text in tracked_texts().items()
        for number, line in enumerate(text.splitlines(), 1)
        if wanted.search(line)
    ]
