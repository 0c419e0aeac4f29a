"""All campaigns of one size, two at a time: `python -m tests.campaigns --size ci [NAME …]`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.campaigns._record import Size
from tests.campaigns.report import known
from tests.tooling.repository import ROOT

AT_A_TIME = 2


def _conduct(name: str, size: Size, record: bool) -> tuple[int, str]:
    command = [sys.executable, "-m", f"tests.campaigns.{name}", "--size", str(size)]
    command += [] if record else ["--no-record"]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.returncode, done.stdout


def main() -> int:
    """Runs what was asked for, all of it unless told; 1 if a law was broken anywhere."""
    campaigns = known()
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(campaigns)}")
    parser.add_argument("--size", type=Size, choices=list(Size), default=Size.CI)
    parser.add_argument("--no-record", action="store_true", help="leave no line in the results")
    said = parser.parse_args()
    unknown = sorted(set(said.names) - set(campaigns))
    if unknown:
        parser.error(f"no campaign {', '.join(unknown)}: known are {', '.join(campaigns)}")
    names = [name for name in said.names or campaigns if said.size in campaigns[name].plans]
    broken = []
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        runs = pool.map(lambda name: _conduct(name, said.size, not said.no_record), names)
        for name, (code, output) in zip(names, runs, strict=True):
            print(output, end="", flush=True)
            if code:
                broken.append(name)
    print(f"{len(names)} campaigns; broken: {', '.join(broken) or 'none'}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
