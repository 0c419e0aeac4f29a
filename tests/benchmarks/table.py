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
class Row:
    """One figure, measured several times; `yardstick` the same figure of the other."""

    work: str
    unit: str
    samples: Sequence[float]
    yardstick: Sequence[float] = ()
    yardstick_name: str = ""

    @property
    def ratios(self) -> list[float]:
        """Of each round; of the medians where the other was measured once; none without it."""
        pairs = list(zip(self.samples, self.yardstick, strict=False))
        if len(self.samples) != len(self.yardstick):
            pairs = [(statistics.median(self.samples), value) for value in self.yardstick]
        return [ours / other for ours, other in pairs if other]

    def line(self) -> str:
        """For a terminal."""
        beside = f"  = {self._ratio()} x {self.yardstick_name}" if self.yardstick else ""
        return f"{self.work}: {_spread(self.samples)} {self.unit}{beside}"

    def _ratio(self) -> str:
        return _spread(self.ratios, "{:.2f}") if self.ratios else "–"

    def markdown(self) -> str:
        """A row of the table."""
        other = _spread(self.yardstick) if self.yardstick else "–"
        return (
            f"| {self.work} | {self.unit} | {_spread(self.samples)} | "
            f"{self.yardstick_name or '–'} | {other} | {self._ratio()} |"
        )


def _spread(samples: Sequence[float], form: str = "") -> str:
    def short(value: float) -> str:
        if form:
            return form.format(value)
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

    if len(set(samples)) == 1:
        return short(samples[0])
    median = short(statistics.median(samples))
    return f"{median} ({short(min(samples))} – {short(max(samples))})"


def _packages() -> Iterator[str]:
    for name in ("resultd", "grpcio", "protobuf", "lmdb", "celery", "redis"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield f"{name} {metadata.version(name)}"


def _redis_server() -> Iterator[str]:
    with contextlib.suppress(OSError):
        said = subprocess.run(["redis-server", "--version"], capture_output=True, text=True)
        version = re.search(r"v=([0-9.]+)", said.stdout)
        if version is not None:
            yield f"redis-server {version[1]}"


_HEAD = """\
# Benchmarks

Written by `make bench`; do not edit. Medians with (least – greatest) of the rounds.
Yardsticks ran in the same run, rounds interleaved: ratios count, figures are this
machine's. A ratio is ours over the yardstick's, of each round: below 1 is better,
except where the unit is 1/s.

Celery is one program with one broker on either result backend. resultd has on the
disk what it says is stored; a Redis with `appendfsync always` does the same.
"""


def render(name: str, rows: Sequence[Row]) -> str:
    """A benchmark's section of the page."""
    versions = ", ".join([*_packages(), *_redis_server()])
    where = (
        f"{time.strftime('%Y-%m-%d', time.gmtime())} · Python {platform.python_version()} · "
        f"{versions} · {os.cpu_count()} cores · {sys.platform}"
    )
    head = [
        f"## {name}",
        "",
        where,
        "",
        "| work | unit | resultd | yardstick | its figure | ratio |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *(row.markdown() for row in rows)]) + "\n"


def put(page: str, sections: Mapping[str, str]) -> str:
    """The page with these sections instead of those of the same names; the others stay."""
    known = {text.partition("\n")[0]: text for text in re.split(r"^## ", page, flags=re.M)[1:]}
    known |= {name: text.removeprefix("## ") for name, text in sections.items()}
    return "\n".join([_HEAD, *(f"## {text.strip()}\n" for text in known.values())])
