"""Bits flip and files lose their ends: `python -m tests.campaigns.flips --size deep`.

A store as a killed server leaves it, some of it in LMDB and some in the journal. Each time
one of its files is damaged; then `resultd verify` looks at it, and an engine opens it and
reads everything, in a process of its own: LMDB trusts its pages and may crash.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from resultd_server.engine import audit
from resultd_server.errors import DomainError
from tests.campaigns._record import Campaign, Size, Tally
from tests.support.stores import Clock, Store, group, make_engine, make_report, task

FILES = ("data.mdb", "journal.0", "journal.1")
RECORDS = 300
RIGHT, REFUSED, ABSENT, WRONG = 0, 3, 4, 5


@dataclass(frozen=True)
class Plan:
    """How many damages."""

    damages: int


def _value(number: int) -> bytes:
    return b"%d." % number * (number % 700)


async def _fill(store: Store, first: int) -> None:
    await store.put(
        [
            make_report(f"t{n}", value=_value(n), group=f"g{first}")
            for n in range(first, first + RECORDS)
        ]
    )
    await store.create(f"h{first}", group(f"g{first}"), task(f"t{first}"), scope="s", seal=True)
    await store.seal(f"g{first}")


async def _make(directory: Path, into: Path) -> None:
    engine = make_engine("journaled", Clock(), directory)
    await engine.start()
    await _fill(Store(engine, Clock()), 0)
    await engine.close()
    engine = make_engine("journaled", Clock(), directory)
    await engine.start()
    await _fill(Store(engine, Clock()), RECORDS)
    shutil.copytree(directory, into)  # as a kill would leave it
    await engine.close()


async def _read(directory: Path) -> int:
    """What reading everything comes to."""
    engine = make_engine("journaled", Clock(), directory)
    try:
        await engine.start()
    except (DomainError, OSError):
        return REFUSED
    store, worst = Store(engine, Clock()), RIGHT
    for number in range(2 * RECORDS):
        try:
            (record,) = await engine.get("default", [f"t{number}"])
        except DomainError:
            worst = max(worst, REFUSED)
            continue
        if record.version == 0:
            worst = max(worst, ABSENT)
        elif (await store.meta(f"t{number}")).value.data != _value(number):
            return WRONG
    return worst


def _read_apart(directory: Path) -> int:
    """The same in a process of its own; negative: the signal it died of."""
    child = os.fork()
    if child == 0:
        code = WRONG
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            code = asyncio.run(_read(directory))
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _damage(file: Path, dice: random.Random) -> str:
    content = bytearray(file.read_bytes())
    # Where something stands: the files are mostly zeros.
    block = dice.choice([n for n in range(0, len(content), 512) if any(content[n : n + 512])])
    at = min(block + dice.randrange(512), len(content) - 1)
    if dice.random() < 0.1:
        file.write_bytes(content[:at])
        return f"{file.name} cut at {at}"
    bit = dice.randrange(8)
    content[at] ^= 1 << bit
    file.write_bytes(content)
    return f"{file.name}, bit {bit} of byte {at}"


def _try(base: Path, directory: Path, dice: random.Random, tally: Tally) -> None:
    shutil.copytree(base, directory)
    file = directory / dice.choice([name for name in FILES if any((base / name).read_bytes())])
    what = _damage(file, dice)
    verdict = audit.verify(directory, Clock()())
    code = _read_apart(directory)
    shutil.rmtree(directory)
    tally.counts["damages"] += 1
    tally.counts["found by verify"] += verdict.count > 0
    names = {RIGHT: "all read right", REFUSED: "refused", ABSENT: "rows not found", WRONG: "wrong"}
    tally.counts[names.get(code, "process died")] += 1
    if code == WRONG:
        tally.faults.append(f"{what}: a wrong value was read")
    elif code != RIGHT and not verdict.count and not verdict.notes:
        tally.faults.append(f"{what}: verify says whole, reading ended with {code}")


def run(plan: Plan, seed: int) -> Tally:
    """Runs a plan."""
    tally, dice = Tally(), random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="flips-") as made:
        base = Path(made) / "base"
        asyncio.run(_make(Path(made) / "store", base))
        for number in range(plan.damages):
            _try(base, Path(made) / str(number), dice, tally)
    return tally


CAMPAIGN = Campaign(
    "flips",
    "A flipped bit or a lost end never makes a value another one; what cannot be read right is "
    "found by `resultd verify`.",
    {Size.CI: Plan(100), Size.DEEP: Plan(2_000), Size.RELEASE: Plan(20_000)},
    run,
)

if __name__ == "__main__":
    sys.exit(CAMPAIGN.main())
