"""The work: which files are counted, and what has to come out."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

# Sources of CPython's own tests that are not UTF-8. Distributions often leave them out.
_BROKEN = (
    "test/encoded_modules/module_*.py",
    "test/**/badsyntax_pep3120.py",
    "lib2to3/tests/data/different_encoding.py",
)
BROKEN_MIN = 3
_MADE = {
    "latin1.py": "# Gr\u00fc\u00dfe\n".encode("latin-1"),
    "utf16.py": "# words, two bytes each\n".encode("utf-16"),
    "cut.py": "# cut in the middle of \u20ac".encode()[:-1],
}
_WORD = re.compile(rb"[A-Za-z0-9_]+")


class Expected(NamedTuple):
    """What counting has to give: words by path, and the files that cannot be read."""

    words: dict[str, int]
    broken: frozenset[str]


def choose(count: int, scratch: Path) -> list[Path]:
    """Choose files spread over the standard library, a few of them not UTF-8."""
    library = Path(sysconfig.get_path("stdlib"))
    broken = _broken(library, scratch)
    good = sorted(path for path in library.rglob("*.py") if _is_ours(path, broken))
    wanted = max(1, count - len(broken))
    chosen = [good[i * len(good) // wanted] for i in range(min(wanted, len(good)))]
    for nth, path in enumerate(broken, 1):  # spread, so that failures land all along
        chosen.insert(nth * len(chosen) // (len(broken) + 1), path)
    return chosen


def count(paths: Iterable[Path]) -> Expected:
    """Count as the workers should have, by other means: bytes, without decoding them."""
    words, broken = {}, set()
    for path in paths:
        data = path.read_bytes()
        try:
            data.decode()
        except UnicodeDecodeError:
            broken.add(str(path))
        else:
            words[str(path)] = len(_WORD.findall(data))
    return Expected(words, frozenset(broken))


def _broken(library: Path, scratch: Path) -> list[Path]:
    candidates = {path for pattern in _BROKEN for path in library.glob(pattern)}
    found = [Path(path) for path in sorted(count(candidates).broken)]
    for name, data in list(_MADE.items())[: max(0, BROKEN_MIN - len(found))]:
        (scratch / name).write_bytes(data)
        found.append(scratch / name)
    return found


def _is_ours(path: Path, broken: list[Path]) -> bool:
    return path not in broken and not {"site-packages", "dist-packages"} & set(path.parts)
