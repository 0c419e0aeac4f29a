"""Any bytes wherever bytes come in: `python -m tests.campaigns.fuzz`.

Every RPC, page tokens and cursors, credentials and the files that say whom to trust, settings and
addresses, records, rows, the journal, backups.

Messages made from the descriptors with what is on the edge in every field, seeds, and bytes of
both changed, each target for its share of the time. An input that takes more than a second of CPU
is a finding as well (`tests/fuzz/bounded.py`). `python -m tests.fuzz.guided` lets coverage lead,
where atheris is installed.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from google.protobuf import message_factory

from tests.campaigns._record import Campaign, Size, Tally
from tests.fuzz import mutate
from tests.fuzz.bounded import TooLong, bounded
from tests.fuzz.seeds import seeds_of
from tests.fuzz.targets import PLAIN, Rpcs, Target
from tests.support.request_fields import METHODS

SHOWN_BYTES = 200


@dataclass(frozen=True)
class Plan:
    """For how many seconds, all targets together."""

    seconds: float


def _inputs(name: str, dice: random.Random) -> Iterator[bytes]:
    """Without an end: seeds first."""
    known = seeds_of(name)
    yield from known
    kind = None
    if name in METHODS:
        kind = message_factory.GetMessageClass(METHODS[name].input_type)
    while True:
        if kind is not None and dice.random() < 0.7:
            raw = mutate.message(kind, dice).SerializeToString()
        else:
            raw = dice.choice(known) if known else b""
        yield raw if dice.random() < 0.3 else mutate.data(raw, dice)


def fuzz(targets: Mapping[str, Target], plan: Plan, seed: int) -> Tally:
    """Each target for its share of the time, each input for a second of CPU."""
    tally = Tally()
    slowest_s = 0.0
    for name, target in targets.items():
        timed = bounded(target)
        until = time.monotonic() + plan.seconds / len(targets)
        for raw in _inputs(name, random.Random(f"{seed} {name}")):
            try:
                slowest_s = max(slowest_s, timed(raw))
            except (Exception, TooLong) as error:  # noqa: BLE001  whatever is raised is the finding
                tally.faults.append(f"{name}: {error!r} of {raw[:SHOWN_BYTES]!r}")
                break
            tally.counts["inputs"] += 1
            if time.monotonic() > until:
                break
        tally.counts["targets"] += 1
    tally.figures["slowest input, ms of CPU"] = round(slowest_s * 1_000, 1)
    return tally


def run(plan: Plan, seed: int) -> Tally:
    """Runs a plan over everything."""
    with Rpcs() as rpcs:
        return fuzz({**PLAIN, **rpcs.targets()}, plan, seed)


CAMPAIGN = Campaign(
    "fuzz",
    "No bytes end in INTERNAL, in an exception that is not the documented one, in no answer, or "
    "in more than a second of CPU.",
    {Size.CI: Plan(120.0), Size.DEEP: Plan(3_600.0), Size.RELEASE: Plan(8 * 3_600.0)},
    run,
)

if __name__ == "__main__":
    sys.exit(CAMPAIGN.main())
