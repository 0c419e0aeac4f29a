"""The fuzzer in small: it passes on what there is, and bites."""

from __future__ import annotations

import asyncio
import itertools
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from resultd_server.service import validate
from resultd_server.service.results import ResultService
from tests.campaigns import fuzz
from tests.fuzz import bounded, targets
from tests.fuzz.seeds import CORPUS, seeds_of
from tests.fuzz.targets import PLAIN, Rpcs
from tests.support.request_fields import METHODS
from tests.tooling.repository import ROOT

SEED = 7
HANDED_OUT = ("page token", "cursor")
"""Targets beside every RPC and what takes bytes by itself."""

Guided = Callable[..., subprocess.CompletedProcess[str]]


def test_no_bytes_break_anything() -> None:
    """A few seconds over everything that takes bytes: refused or taken."""
    tally = fuzz.run(fuzz.Plan(seconds=6.0), SEED)
    assert tally.faults == []
    assert tally.counts["targets"] == len(PLAIN) + len(METHODS) + len(HANDED_OUT)
    assert 0 < tally.figures["slowest input, ms of CPU"] < bounded.CPU_S * 1_000


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


def test_the_fuzzer_bites_where_an_input_takes_long() -> None:
    """A parser that is quadratic in what it reads is found by the CPU it takes, and interrupted."""

    def quadratic(raw: bytes) -> None:
        """Some seconds for the first seed, which is 50 bytes long."""
        for _, _ in itertools.product(range(len(raw) * 300), repeat=2):
            continue

    [fault] = fuzz.fuzz({"url": quadratic}, fuzz.Plan(seconds=20.0), SEED).faults
    assert "TooLong" in fault
    assert "s of CPU" in fault


def test_an_input_that_is_slow_is_found_whatever_becomes_of_the_interruption() -> None:
    """Code that swallows everything and then returns, or raises something else, is timed too."""

    def swallows(_: bytes) -> None:
        try:
            while True:
                ""
        except BaseException:  # noqa: BLE001  it is what the test plants
            return

    def exchanges(raw: bytes) -> None:
        swallows(raw)
        raise ValueError

    for target in (swallows, exchanges):
        with pytest.raises(bounded.TooLong, match="s of CPU"):
            bounded.bounded(target, cpu_s=0.05)(b"")


def test_what_waits_is_not_what_works() -> None:
    """Wall time is nobody's fault here: what takes no CPU passes, and its seconds are told."""
    waited = bounded.bounded(lambda _: asyncio.run(asyncio.sleep(0.2)), cpu_s=0.15)(b"")
    assert 0 < waited < 0.15


def test_the_fuzzer_bites_where_no_answer_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that waits for ever, without CPU, is found once the patience is over."""

    async def never(*_: object) -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(targets, "HANG_S", 0.3)
    monkeypatch.setattr(ResultService, "get_result", never)
    name = "resultd.v1.ResultService.GetResult"
    with Rpcs() as rpcs:
        tally = fuzz.fuzz({name: rpcs.target(name)}, fuzz.Plan(seconds=20.0), SEED)
    [fault] = tally.faults
    assert "no answer in 0.3 s" in fault


@pytest.fixture
def guided(tmp_path: Path) -> Guided:
    """Runs the fuzzer that coverage leads; what it finds it writes beside the test."""
    pytest.importorskip("atheris", reason="atheris has no wheel for this machine")

    def run(program: Sequence[str], *said: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *program, *said, f"-artifact_prefix={tmp_path}/", "-max_total_time=2"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    return run


def test_coverage_leads_through_a_call(guided: Guided) -> None:
    """For two seconds: it runs to its end, sees more of our code than the seeds reach, no bug."""
    done = guided(["-m", "tests.fuzz.guided"], "resultd.v1.ResultService.GetResult")
    assert done.returncode == 0, done.stdout
    covered = [int(found) for found in re.findall(r"\bcov: (\d+)", done.stdout)]
    assert covered[-1] > covered[0]
    assert int(re.findall(r"Done (\d+) runs", done.stdout)[0]) > 10


PLANTED = """
from tests.fuzz import targets  # before they would be instrumented: that takes seconds
from tests.fuzz import guided

def fragile(raw):
    if raw.startswith(b"resultd:"):
        while True:
            ""

targets.PLAIN["url"] = fragile
guided.main()
"""


def test_the_fuzzer_that_coverage_leads_bites(guided: Guided, tmp_path: Path) -> None:
    """A parser that does not come back is found, and its input kept."""
    done = guided(["-c", PLANTED], "url")
    assert done.returncode != 0
    assert "TooLong" in done.stdout
    [found] = tmp_path.glob("crash-*")
    assert found.read_bytes().startswith(b"resultd:")
