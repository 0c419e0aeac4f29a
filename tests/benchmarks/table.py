"""What a benchmark says, and the page it is written to."""

from __future__ import annotations

import contextlib
import enum
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata


class Size(enum.Enum):
    """How much work: tiny shows that it runs, full measures."""

    TINY = "tiny"
    FULL = "full"

    def of(self, full: int, tiny: int) -> int:
        """The number for this size."""
        return full if self is Size.FULL else tiny

    def __str__(self) -> str:
        """As the command line says it."""
        return self.value


@dataclass(frozen=True)
class Target:
    """What is aimed at: of the ratio to the yardstick, unless of the figure itself."""

    limit: float
    at_least: bool = False
    figure: bool = False

    def met(self, row: Row) -> bool:
        """By the median: of the rounds' ratios, or of the rounds' figures."""
        values = row.samples if self.figure else row.ratios
        median = statistics.median(values) if values else float("nan")
        return median >= self.limit if self.at_least else median <= self.limit

    def text(self, row: Row) -> str:
        """The aim, and whether it is met."""
        unit = row.unit if self.figure else "×"
        words = f"{'≥' if self.at_least else '≤'} {_short(self.limit)} {unit}".rstrip()
        return f"{words}: {'met' if self.met(row) else '**missed**'}"


def at_most(limit: float) -> Target:
    """Of the ratio."""
    return Target(limit)


def at_least(limit: float) -> Target:
    """Of the ratio."""
    return Target(limit, at_least=True)


def figure_at_most(limit: float) -> Target:
    """Of the figure, in the row's unit."""
    return Target(limit, figure=True)


@dataclass(frozen=True)
class Row:
    """One figure, measured several times; `yardstick` the same figure of the other.

    `left_out`: why it was not measured here.
    """

    work: str
    unit: str
    samples: Sequence[float]
    yardstick: Sequence[float] = ()
    yardstick_name: str = ""
    target: Target | None = None
    left_out: str = ""

    @property
    def ratios(self) -> list[float]:
        """Of each round; of the medians where the other was measured once; none without it."""
        pairs = list(zip(self.samples, self.yardstick, strict=False))
        if len(self.samples) != len(self.yardstick):
            pairs = [(statistics.median(self.samples), value) for value in self.yardstick]
        return [ours / other for ours, other in pairs if other]

    def line(self) -> str:
        """For a terminal."""
        if self.left_out:
            return f"{self.work}: left out: {self.left_out}"
        beside = f"  = {self._ratio()} x {self.yardstick_name}" if self.yardstick else ""
        aim = f"  [{self._target()}]" if self.target else ""
        return f"{self.work}: {_spread(self.samples)} {self.unit}{beside}{aim}"

    def _ratio(self) -> str:
        return _spread(self.ratios, "{:.2f}") if self.ratios else "–"

    def _target(self) -> str:
        return self.target.text(self) if self.target else "–"

    def markdown(self) -> str:
        """A row of the table."""
        if self.left_out:
            return f"| {self.work} | | left out: {self.left_out} | | | | |"
        other = _spread(self.yardstick) if self.yardstick else "–"
        return (
            f"| {self.work} | {self.unit} | {_spread(self.samples)} | "
            f"{self.yardstick_name or '–'} | {other} | {self._ratio()} | {self._target()} |"
        )


def left_out(work: str, why: str) -> Row:
    """A row that says why it has no figure."""
    return Row(work, "", (), left_out=why)


def _spread(samples: Sequence[float], form: str = "") -> str:
    def short(value: float) -> str:
        return form.format(value) if form else _short(value)

    if len(set(samples)) == 1:
        return short(samples[0])
    median = short(statistics.median(samples))
    return f"{median} ({short(min(samples))} – {short(max(samples))})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _packages() -> Iterator[str]:
    for name in ("resultd", "grpcio", "protobuf", "lmdb", "celery", "redis"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield f"{name} {metadata.version(name)}"


def _programs() -> Iterator[str]:
    for name, shape in (("redis-server", r"v=([0-9.]+)"), ("etcd", r"Version: ([0-9.]+)")):
        with contextlib.suppress(OSError):
            said = subprocess.run([name, "--version"], capture_output=True, text=True)
            version = re.search(shape, said.stdout)
            if version is not None:
                yield f"{name} {version[1]}"


_HEAD = """\
# Benchmarks

Written by `make bench`; do not edit. Medians with (least – greatest) of the rounds.
Yardsticks ran in the same run, rounds interleaved: ratios count, figures are this
machine's. A ratio is ours over the yardstick's, of each round: below 1 is better,
except where the unit is 1/s. A target is met or missed by the median of the ratios,
or of the figures where it names a unit.

`make bench ARGS="store iterate"` runs some of them, `ARGS="--size tiny"` shows within
seconds that all still run and writes nothing. Big stores are looked for under
`BENCH_DIR`, a directory of the user's cache unless it is set. One of 1,000,000 records
is built when it is missed, within a minute or two; one of 10,000,000 takes 8 GB and up to
half an hour, and is built by `python -m tests.benchmarks.load --records 10000000`.

Celery is one program with one broker on either result backend. resultd has on the
disk what it says is stored; a Redis with `appendfsync always` does the same.
"""


def render(name: str, rows: Sequence[Row]) -> str:
    """A benchmark's section of the page."""
    versions = ", ".join([*_packages(), *_programs()])
    where = (
        f"{time.strftime('%Y-%m-%d', time.gmtime())} · Python {platform.python_version()} · "
        f"{versions} · {os.cpu_count()} cores · {sys.platform}"
    )
    head = [
        f"## {name}",
        "",
        where,
        "",
        "| work | unit | resultd | yardstick | its figure | ratio | target |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *(row.markdown() for row in rows)]) + "\n"


def put(page: str, sections: Mapping[str, str]) -> str:
    """The page with these sections instead of those of the same names; the others stay."""
    known = {text.partition("\n")[0]: text for text in re.split(r"^## ", page, flags=re.M)[1:]}
    known |= {name: text.removeprefix("## ") for name, text in sections.items()}
    return "\n".join([_HEAD, *(f"## {text.strip()}\n" for text in known.values())])
