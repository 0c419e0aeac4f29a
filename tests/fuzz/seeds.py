"""Where fuzzing begins: a sound request of each RPC, a few texts, and what was found before."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.targets import SEEDS
from tests.support.request_fields import TEMPLATES

CORPUS = Path(__file__).parent / "corpus"
"""Files `TARGET.NAME`, small ones: what once was a bug."""


def seeds_of(name: str) -> list[bytes]:
    """The seeds of a target; those that once were bugs are among them."""
    found = [*SEEDS.get(name, ())]
    if name in TEMPLATES:
        found.append(TEMPLATES[name].SerializeToString())
    if name == "record":
        report = TEMPLATES["resultd.v1.ResultService.StoreResult"]
        found.append(report.meta.SerializeToString())  # type: ignore[attr-defined]  # a report
    return [*found, *(path.read_bytes() for path in sorted(CORPUS.glob(f"{name}.*")))]
