"""Writes `docs/reliability.md` from the runs kept: `python -m tests.campaigns.report`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.campaigns._record import RESULTS, Campaign, Entry, kept

PAGE = RESULTS.with_suffix(".md")

_HEAD = """\
# Reliability

Written by `python -m tests.campaigns.report` from [the runs kept](reliability.jsonl); do not
edit. First what each campaign is to come to over all its runs, and what they have come to, then
all that was counted. Counts are added up over all runs, figures are the greatest of any run,
`broken` counts breaches of the law above the table; runs that found one stay, with the command
that repeats them, and `since` counts the runs that came after the last of those.
`python -m tests.campaigns --size ci` runs all of it in minutes; each campaign alone:
`python -m tests.campaigns.NAME --size ci|deep|release --seed N`; with `--minutes M` it goes
on with the next seed, a line each, until so long has passed.
"""

MINUTES = "minutes"
LONGEST = "minutes in one run"

GOALS: dict[str, dict[str, int]] = {
    "cancels": {"cancelled": 200_000},
    "chords": {"chords": 300},
    "clocks": {"jumps": 1_000},
    "disk_faults": {
        "write of the journal": 100,
        "write of the store": 100,
        "sync of the store": 100,
        "full disk": 100,
        "full store": 100,
    },
    "flips": {"damages": 2_000},
    "forks": {"forks": 2_600},
    "fuzz": {MINUTES: 60},
    "hostile": {"connections": 200_000},
    "kills": {"kills": 500, "writes acknowledged": 5_000_000},
    "leaks": {"gets": 20_000, "groups": 2_000},
    "links": {"events": 500_000},
    "overload": {"batches offered": 5_000},
    "power_cuts": {"cuts on ext4": 30, "cuts on xfs": 30},
    "races": {"waits": 1_000_000},
    "restarts": {"results waited for": 21_000},
    "soak": {LONGEST: 60},
    "streams": {"events": 20_000_000},
    "tenants": {"steps": 200_000},
}
"""What there is to come to: by campaign and count, added up over all runs."""

REMARKS: dict[str, str] = {
    "overload": "What was found is the memory of two runs and, counted once for each batch, "
    "CANCELLED: gRPC's own word where more than 1,000 calls lay there that nobody had looked at. "
    "Since calls are taken up together and refused unread "
    "([0015](decisions/0015-calls-are-taken-up-together.md)) there was neither.",
}
"""What became of what was found, where the numbers do not say it."""


def known() -> dict[str, Campaign[object]]:
    """Every campaign there is, by name."""
    found = {}
    for source in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        if "\nCAMPAIGN = " in source.read_text():  # others are programs that campaigns start
            module = importlib.import_module(f"tests.campaigns.{source.stem}")
            found[source.stem] = module.CAMPAIGN
    return found


def page(entries: Sequence[Entry], laws: dict[str, str]) -> str:
    """The page for these runs."""
    parts = [_HEAD, _summary(entries)]
    for name in sorted({entry.campaign for entry in entries}):
        runs = [entry for entry in entries if entry.campaign == name]
        parts.append(_section(name, laws.get(name, ""), runs))
    return "\n".join(parts)


def _summary(entries: Sequence[Entry]) -> str:
    """Goals, and how far all runs have come."""
    lines = ["| campaign | what | goal | so far | runs | broken | since |", "|---" * 7 + "|"]
    for name, goals in GOALS.items():
        runs = [entry for entry in entries if entry.campaign == name]
        broken = sum(run.broken for run in runs)
        since = str(len(_since(runs))) if broken else "–"
        for what, goal in goals.items():
            cells = [name, what, f"{goal:,}", f"{_reached(what, runs):,}", len(runs), f"{broken:,}"]
            cells.append(since)
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _since(runs: Sequence[Entry]) -> list[Entry]:
    """The runs after the last one that found something."""
    last = max((run.began for run in runs if run.broken), default="")
    return [run for run in runs if run.began > last]


def _reached(what: str, runs: Sequence[Entry]) -> int:
    if what == MINUTES:
        return int(sum(run.seconds for run in runs) / 60)
    if what == LONGEST:
        return int(max((run.seconds for run in runs), default=0) / 60)
    return sum(run.counts.get(what, 0) for run in runs)


def _section(name: str, law: str, runs: Sequence[Entry]) -> str:
    counts = _names(run.counts for run in runs)
    figures = _names(run.figures for run in runs)
    columns = ["size", "runs", "minutes", "broken", *counts, *figures]
    lines = [f"## {name}", "", *([law, ""] if law else [])]
    lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for size in _names({run.size: 0} for run in runs):
        mine = [run for run in runs if run.size == size]
        cells = [size, str(len(mine)), f"{sum(run.seconds for run in mine) / 60:.1f}"]
        cells.append(f"{sum(run.broken for run in mine):,}")
        cells += [f"{sum(run.counts.get(key, 0) for run in mine):,}" for key in counts]
        cells += [
            _greatest(run.figures[key] for run in mine if key in run.figures) for key in figures
        ]
        lines.append(f"| {' | '.join(cells)} |")
    last = runs[-1]
    versions = ", ".join(f"{key} {value}" for key, value in last.versions.items())
    lines += ["", f"Last: {last.began}, commit {last.commit}, {versions}; `{last.again}`."]
    found = [run for run in runs if run.broken]
    if found:
        lines += ["", "Runs that found something:", ""]
    for run in found:
        lines.append(f"- {run.began}, commit {run.commit}, `{run.again}`: {run.faults[0]}")
    if found:
        since = len(_since(runs))
        lines += ["", f"Runs since then, none of which found anything: {since}."]
    if name in REMARKS:
        lines += ["", REMARKS[name]]
    return "\n".join(lines) + "\n"


def _names(mappings: Iterable[dict[str, int] | dict[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def _greatest(numbers: Iterable[float]) -> str:
    found = list(numbers)
    return f"{max(found):,.4g}" if found else "–"


def current() -> str:
    """The page as the runs kept have it."""
    return page(kept(), {name: campaign.law for name, campaign in known().items()})


def main() -> int:
    """Writes it."""
    PAGE.write_text(current())
    print(f"written: {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
