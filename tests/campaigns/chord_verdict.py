"""The chord campaign's verdict: what was seen, held against what a chord promises."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

# A claimant that lives says that it is done a few milliseconds after it has published. One
# killed longer after that than this did not die of it.
BETWEEN_S = 2.0


@dataclass(frozen=True)
class Death:
    """A process that was killed, and when."""

    pid: int
    at: float


@dataclass(frozen=True)
class Outage:
    """When the server was killed, and when it was there again."""

    began: float
    ended: float


@dataclass(frozen=True)
class Publication:
    """One try to publish a body. `sent_at` None: it did not live to say so."""

    chord: int
    body: str
    pid: int
    at: float
    sent_at: float | None


@dataclass
class Verdict:
    """What was counted, and the laws that were broken.

    `log`: what the workers wrote. `slowest_s`: the longest that a chord took.
    """

    counts: dict[str, int]
    faults: list[str]
    log: str = ""
    slowest_s: float = 0.0


def judge(
    *,
    sizes: Mapping[int, int],
    told: Mapping[int, Sequence[Any]],
    stored: Mapping[int, Any],
    executed: Sequence[str],
    published: Sequence[str],
    deaths: Sequence[Death],
    outages: Sequence[Outage],
    lost: Sequence[int],
) -> Verdict:
    """Holds what was seen against the laws.

    `lost`: chords whose bodies were published and then lost by the broker.
    """
    runs: dict[int, list[dict[str, Any]]] = {number: [] for number in sizes}
    for text in executed:
        said = json.loads(text)
        runs[said["chord"]].append(said)
    tries: dict[int, list[Publication]] = {number: [] for number in sizes}
    for publication in publications(published):
        tries[publication.chord].append(publication)
    faults: list[str] = []
    repeats = 0
    for number, size in sizes.items():
        faults += _broken(number, size, told[number], stored[number], runs[number])
        for earlier, later in pairwise(tries[number]):
            repeats += 1
            if not explained(earlier, later, deaths, outages):
                after_s = later.at - earlier.at
                faults.append(f"chord {number}: published again {after_s:.1f} s after, NO REASON")
        if len({each.body for each in tries[number]}) > 1:
            faults.append(f"chord {number}: published under several ids")
    for number in lost:
        sent = [each.sent_at for each in tries[number] if each.sent_at]
        if not sent or not any(death.at >= min(sent) for death in deaths):
            faults.append(f"chord {number}: its body was never sent, and the claim says done")
    again = [number for number in sizes if len(runs[number]) > 1]
    counts = {
        "bodies missing": sum(not ran for ran in runs.values()),
        "bodies run": sum(map(len, runs.values())),
        "bodies run more than once": len(again),
        "publications": sum(map(len, tries.values())),
        "publications beyond the first": repeats,
        "waiters told": sum(map(len, told.values())),
    }
    return Verdict(counts, faults)


def _broken(
    number: int, size: int, told: Sequence[Any], stored: Any, runs: Sequence[dict[str, Any]]
) -> list[str]:
    faults = []
    whole = [[number, index] for index in range(size)]
    if not runs:
        faults.append(f"chord {number}: its body never ran")
    faults += [f"chord {number}: its body got {r['got']}" for r in runs if r["got"] != whole]
    if len(told) != 1:
        faults.append(f"chord {number}: its waiter was told {len(told)} times")
    known = [{"chord": number, "run": ran["run"], "parts": size} for ran in runs]
    if stored not in known:
        faults.append(f"chord {number}: stored is {stored!r}, of no run of its body")
    if any(each != stored for each in told):
        faults.append(f"chord {number}: told {told!r}, stored {stored!r}")
    return faults


def publications(published: Sequence[str]) -> list[Publication]:
    """Pairs what was said before publishing with what was said after it."""
    found: list[Publication] = []
    said = [json.loads(text) for text in published]
    afters = [each for each in said if each["phase"] == "after"]
    for each in said:
        if each["phase"] != "before":
            continue
        sent = next(
            (
                after
                for after in afters
                if after["pid"] == each["pid"] and after["body"] == each["body"]
                if after["at"] >= each["at"]
            ),
            None,
        )
        if sent is not None:
            afters.remove(sent)
        found.append(
            Publication(
                each["chord"],
                each["body"],
                each["pid"],
                each["at"],
                None if sent is None else sent["at"],
            )
        )
    return sorted(found, key=lambda publication: publication.at)


def explained(
    earlier: Publication,
    later: Publication,
    deaths: Sequence[Death],
    outages: Sequence[Outage],
) -> bool:
    """Whether something that happened is a reason for publishing a body again."""
    last = min(later.at, earlier.at + BETWEEN_S)
    if any(death.pid == earlier.pid and earlier.at <= death.at <= last for death in deaths):
        return True
    # It could not say that it was done; its lease ran out, or it died of something else.
    return any(
        outage.began - BETWEEN_S <= earlier.at <= outage.ended and later.at > outage.began
        for outage in outages
    )
