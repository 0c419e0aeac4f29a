"""The fuzzer in small: it passes on what there is, and bites."""

from __future__ import annotations

import pytest

from resultd_server.service import validate
from tests.campaigns import fuzz
from tests.fuzz.seeds import CORPUS, seeds_of
from tests.fuzz.targets import PLAIN, Rpcs
from tests.support.request_fields import METHODS

SEED = 7
HANDED_OUT = ("page token", "cursor")
"""Targets beside every RPC and what takes bytes by itself."""


def test_no_bytes_break_anything() -> None:
    """A few seconds over everything that takes bytes: refused or taken."""
    tally = fuzz.run(fuzz.Plan(seconds=6.0), SEED)
    assert tally.faults == []
    assert tally.counts["targets"] == len(PLAIN) + len(METHODS) + len(HANDED_OUT)


def test_what_once_was_a_bug_is_none_any_more() -> None:
    """Every file of the corpus belongs to a target, is small, and is begun with."""
    for path in CORPUS.glob("*.*"):
        name = path.name.rpartition(".")[0]
        assert name in {*PLAIN, *METHODS, *HANDED_OUT}
        assert path.stat().st_size < 4_096
        assert path.read_bytes() in seeds_of(name)


def test_the_fuzzer_bites_in_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that fails for some ids is found, and the input is shown."""
    check = validate.id_

    def careless(field: str, value: str) -> str:
        return check(field, value) if value.isascii() else value.encode("ascii").decode()

    monkeypatch.setattr(validate, "id_", careless)
    name = "resultd.v1.ResultService.GetResult"
    with Rpcs() as rpcs:
        tally = fuzz.fuzz({name: rpcs.target(name)}, fuzz.Plan(seconds=20.0), SEED)
    [fault] = tally.faults
    assert "INTERNAL" in fault


def test_the_fuzzer_bites_in_plain_code() -> None:
    """A parser that raises what it should not is found."""

    def fragile(raw: bytes) -> None:
        raw.decode("ascii")

    [fault] = fuzz.fuzz({"url": fragile}, fuzz.Plan(seconds=20.0), SEED).faults
    assert "UnicodeDecodeError" in fault
