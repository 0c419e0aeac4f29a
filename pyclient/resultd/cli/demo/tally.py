"""What arrived, held against what had to."""

from __future__ import annotations

import collections
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from resultd.cli.demo.files import Expected


@dataclass
class Tally:
    """Counts results as they land."""

    seen: collections.Counter[str] = field(default_factory=collections.Counter)
    workers: collections.Counter[str] = field(default_factory=collections.Counter)
    times: list[float] = field(default_factory=list)
    words: dict[str, int] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)

    def add(self, meta: Mapping[str, Any]) -> None:
        """Take a result."""
        task_id = meta["task_id"]
        self.times.append(time.monotonic())
        self.seen[task_id] += 1
        self.workers[meta["worker"]] += 1
        if meta["status"] == "SUCCESS":
            self.words[task_id] = meta["result"]["words"]
        else:
            self.failed.add(task_id)

    @property
    def done(self) -> int:
        """How many tasks have a result."""
        return len(self.seen)

    @property
    def total_words(self) -> int:
        """All words so far."""
        return sum(self.words.values())

    def longest_gap(self, began: float, ended: float) -> float:
        """Return the longest time without a result that touches the time between."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return max((b - a for a, b in pairs if b >= began and a <= ended), default=0.0)


@dataclass(frozen=True)
class Verdict:
    """Whether it adds up."""

    lost: int
    duplicates: int
    problems: tuple[str, ...]

    @property
    def adds_up(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.duplicates or self.problems)


def judge(
    tally: Tally,
    paths: Mapping[str, str],
    expected: Expected,
    stored: Iterable[Mapping[str, Any]],
) -> Verdict:
    """Hold what was streamed against the files themselves and against the store.

    `paths` are the files by task id; `stored` is what the server has now.
    """
    problems = []
    wrong = [
        task for task, words in tally.words.items() if words != expected.words.get(paths[task])
    ]
    if wrong:
        problems.append(f"{len(wrong)} files have another number of words: {wrong[:3]}")
    failed = {paths[task] for task in tally.failed}
    if failed != expected.broken:
        problems.append(f"failed, or did not, unlike expected: {failed ^ expected.broken}")
    streamed = {task: "FAILURE" if task in tally.failed else "SUCCESS" for task in tally.seen}
    if {meta["task_id"]: meta["status"] for meta in stored} != streamed:
        problems.append("the store has other results than the stream brought")
    lost = len(paths.keys() - tally.seen.keys())
    return Verdict(lost, sum(tally.seen.values()) - len(tally.seen), tuple(problems))
