"""Prints the lowest versions pyproject.toml promises to work with, as pip constraints.

python .ci/floor.py                 of the bare install
python .ci/floor.py server cli      of these extras too
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import tomllib

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
LOWEST = re.compile(r"(?P<name>[A-Za-z0-9._-]+)>=(?P<version>[0-9.]+)(?P<marker>\s*;.*)?")


def main() -> int:
    """Prints one constraint a line; refuses a requirement without a floor."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in sys.argv[1:]:
        wanted += project["optional-dependencies"][extra]
    for requirement in wanted:
        if requirement.startswith("resultd["):
            continue
        found = LOWEST.fullmatch(requirement)
        if found is None:
            print(f"{requirement!r} names no lowest version (name>=version)", file=sys.stderr)
            return 1
        print(f"{found['name']}=={found['version']}{found['marker'] or ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
