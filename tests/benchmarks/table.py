"""What a benchmark says, and the page it is written to."""

from __future__ import annotations

import enum
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
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
    def ratio(self) -> float | None:
        """Of the medians; None without a yardstick."""
        if not self.yardstick:
            return None
        return statistics.median(self.samples) / statistics.median(self.yardstick)

    def line(self) -> str:
        """For a terminal."""
        beside = "" if self.ratio is None else f"  = {self.ratio:.2f} x {self.yardstick_name}"
        return f"{self.work}: {_spread(self.samples)} {self.unit}{beside}"

    def markdown(self) -> str:
        """A row of the table."""
        other = _spread(self.yardstick) if self.yardstick else "–"
        ratio = "–" if self.ratio is None else f"{self.ratio:.2f} ×"
        return (
            f"| {self.work} | {self.unit} | {_spread(self.samples)} | "
            f"{self.yardstick_name or '–'} | {other} | {ratio} |"
        )


def _spread(samples: Sequence[float]) -> str:
    def short(value: float) -> str:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

    if len(samples) == 1:
        return short(samples[0])
    median = short(statistics.median(samples))
    return f"{median} ({short(min(samples))} – {short(max(samples))})"


def render(rows: Sequence[Row]) -> str:
    """The page."""
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("resultd", "grpcio", "protobuf", "lmdb")
    )
    where = (
        f"{time.strftime('%Y-%m-%d', time.gmtime())} · Python {platform.python_version()} · "
        f"{versions} · {os.cpu_count()} cores · {sys.platform}"
    )
    head = [
        "# Benchmarks",
        "",
        "Written by `make bench`; do not edit. Medians with (least – greatest) of the rounds.",
        "Yardsticks ran in the same run, rounds interleaved: ratios count, figures are this",
        "machine's.",
        "",
        where,
        "",
        "| work | unit | resultd | yardstick | its figure | ratio |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *(row.markdown() for row in rows)]) + "\n"
