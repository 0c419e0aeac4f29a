"""What campaigns share: sizes, a seed, the line a run leaves behind, the way to repeat it.

CAMPAIGN = Campaign("streams", "No event is …", {Size.CI: Plan(…), Size.DEEP: Plan(…)}, run)

if __name__ == "__main__":
    sys.exit(CAMPAIGN.main())

A run's totals are appended to `docs/reliability.jsonl`; `python -m tests.campaigns.report` makes
`docs/reliability.md` of it.
"""

from __future__ import annotations

import argparse
import enum
import itertools
import json
import os
import platform
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from tests.tooling.repository import ROOT

RESULTS = ROOT / "docs" / "reliability.jsonl"
FAULTS_KEPT = 5
"""Faults of a run that its line spells out; the others are only counted."""

P = TypeVar("P")


class Size(enum.Enum):
    """How much of it: seconds for CI, minutes to an hour for deep, hours for release."""

    CI = "ci"
    DEEP = "deep"
    RELEASE = "release"

    def __str__(self) -> str:
        """As the command line says it."""
        return self.value


@dataclass
class Tally:
    """What a run did and saw.

    Attributes:
        counts: how often something was done or seen: added up over runs.
        figures: measured once a run, unit last in the name: the greatest is shown.
        faults: the laws that were broken, a sentence each.
    """

    counts: Counter[str] = field(default_factory=Counter)
    figures: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        for name, number in [*self.counts.items(), *self.figures.items()]:
            yield f"  {name}: {number:,}"
        for fault in self.faults[: 4 * FAULTS_KEPT]:
            yield f"  BROKEN: {fault}"
        if len(self.faults) > 4 * FAULTS_KEPT:
            yield f"  and {len(self.faults) - 4 * FAULTS_KEPT} more"


class Entry(NamedTuple):
    """A line of the results: one run."""

    campaign: str
    size: str
    seed: int
    began: str
    seconds: float
    counts: dict[str, int]
    figures: dict[str, float]
    broken: int
    faults: list[str]
    commit: str
    versions: dict[str, str]
    again: str


@dataclass(frozen=True)
class Campaign(Generic[P]):
    """Something done very often, and the law that has to hold meanwhile.

    Attributes:
        name: of its module.
        law: a sentence for the page.
        plans: what is run in each size.
        run: runs a plan with a seed; repeats what it did as far as processes allow.
    """

    name: str
    law: str
    plans: Mapping[Size, P]
    run: Callable[[P, int], Tally]

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Runs what the command line says and keeps its line; 1 if a law was broken."""
        program = f"python -m tests.campaigns.{self.name}"
        parser = argparse.ArgumentParser(prog=program, description=self.law)
        parser.add_argument(
            "--size", type=Size, choices=[*self.plans], default=next(iter(self.plans))
        )
        parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
        parser.add_argument("--no-record", action="store_true", help="leave no line in the results")
        parser.add_argument(
            "--minutes",
            type=float,
            default=0.0,
            metavar="M",
            help="go on with the next seed until so long has passed or a law is broken",
        )
        said = parser.parse_args(arguments)
        until = time.monotonic() + 60 * said.minutes
        for seed in itertools.count(said.seed):
            entry = self.conduct(said.size, seed)
            if not said.no_record:
                keep(entry)
            if entry.broken:
                return 1
            if time.monotonic() >= until:
                return 0
        raise AssertionError("seeds do not end")

    def conduct(self, size: Size, seed: int) -> Entry:
        """Runs one size and prints what came of it."""
        again = f"python -m tests.campaigns.{self.name} --size {size} --seed {seed}"
        began = time.time()
        tally = self.run(self.plans[size], seed)
        seconds = round(time.time() - began, 1)
        print(f"{self.name} ({size}, seed {seed}): {seconds} s", *tally.lines(), sep="\n")
        if tally.faults:
            print(f"  again: {again}")
        return entry_of(self.name, str(size), seed, began, tally, again)


def entry_of(name: str, size: str, seed: int, began: float, tally: Tally, again: str) -> Entry:
    """The line of a run that began then and ends now."""
    return Entry(
        campaign=name,
        size=size,
        seed=seed,
        began=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        seconds=round(time.time() - began, 1),
        counts=dict(tally.counts),
        figures=tally.figures,
        broken=len(tally.faults),
        faults=tally.faults[:FAULTS_KEPT],
        commit=_commit(),
        versions=_versions(),
        again=again,
    )


def keep(entry: Entry, results: Path = RESULTS) -> None:
    """Appends a run to the results. Campaigns may run side by side: one write a line."""
    with results.open("a") as file:
        file.write(json.dumps(entry._asdict()) + "\n")


def kept(results: Path = RESULTS) -> list[Entry]:
    """Every run there is, in their order."""
    return [Entry(**json.loads(line)) for line in results.read_text().splitlines()]


def _commit() -> str:
    command = ["git", "describe", "--always", "--abbrev=10", "--exclude=*"]
    try:
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return said.stdout.strip()


def _versions() -> dict[str, str]:
    names: dict[str, Any] = {"python": platform.python_version(), "cores": str(os.cpu_count())}
    for name in ("resultd", "grpcio", "protobuf", "lmdb"):
        names[name] = metadata.version(name)
    return names
