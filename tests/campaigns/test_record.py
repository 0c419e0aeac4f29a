"""What campaigns leave behind, and the page made of it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.campaigns import report
from tests.campaigns._record import Campaign, Entry, Size, Tally, entry_of, keep, kept
from tests.tooling.repository import ROOT

CAMPAIGNS = "tests/faults/test_campaigns.py"
BITES = {
    "cancels": f"{CAMPAIGNS}::test_the_cancels_bite",
    "chords": "tests/end_to_end/celery/test_chord_campaign.py::test_the_judge_bites",
    "clocks": f"{CAMPAIGNS}::test_the_clocks_bite",
    "disk_faults": "tests/faults/test_disk.py::test_the_disk_faults_bite",
    "flips": "tests/server/engine/test_audit.py::test_values_that_nobody_checks_are_found_out",
    "forks": "tests/end_to_end/celery/test_forks.py::test_the_forks_bite",
    "fuzz": "tests/fuzz/test_fuzz.py::test_the_fuzzer_bites_in_a_call",
    "hostile": "tests/faults/test_hostile.py::test_the_campaign_bites",
    "kills": "tests/faults/test_kill.py::test_answers_before_the_journal_is_written_are_found_out",
    "leaks": "tests/end_to_end/celery/test_leaks.py::test_the_leaks_bite",
    # Its judge is the streams' own.
    "links": "tests/faults/test_streams.py::test_the_validator_bites",
    "overload": f"{CAMPAIGNS}::test_the_overload_bites",
    "power_cuts": "tests/faults/test_power_cut.py::"
    "test_a_journal_that_is_not_waited_for_is_found_out",
    "races": f"{CAMPAIGNS}::test_the_races_bite",
    "restarts": f"{CAMPAIGNS}::test_the_restarts_bite",
    "soak": f"{CAMPAIGNS}::test_the_soak_bites",
    "streams": "tests/faults/test_streams.py::test_the_validator_bites",
    "tenants": f"{CAMPAIGNS}::test_the_tenants_bite",
}
"""The test that shows it: it runs the campaign where a fault is planted."""


def entry(broken: int = 0, events: int = 10, memory_mib: float = 1.0) -> Entry:
    """A run."""
    tally = Tally(
        Counter(events=events), {"memory MiB": memory_mib}, [f"fault {n}" for n in range(broken)]
    )
    return entry_of("example", "ci", 7, 0.0, tally, "again")


def test_a_run_is_one_line_and_comes_back_as_it_was(tmp_path: Path) -> None:
    """What is kept is read again, run by run; faults beyond five are only counted."""
    results = tmp_path / "results.jsonl"
    runs = [entry(), entry(broken=9)]
    for run in runs:
        keep(run, results)
    assert kept(results) == runs
    assert results.read_text().count("\n") == 2
    assert (runs[1].broken, len(runs[1].faults)) == (9, 5)


def test_counts_are_added_up_and_figures_are_the_greatest() -> None:
    """Two runs of a size are one row: events summed, memory the worst, breaches counted."""
    page = report.page([entry(events=1_000), entry(2, 500, 3.5)], {"example": "A law."})
    [row] = [line for line in page.splitlines() if line.startswith("| ci ")]
    assert [cell.strip() for cell in row.split("|")[4:-1]] == ["2", "1,500", "3.5"]
    assert "A law." in page
    assert "`again`: fault 0" in page


def test_what_was_found_is_told_from_what_came_after() -> None:
    """Runs since the last that found something are counted, each of which found nothing."""
    found = entry(broken=1)._replace(began="2026-01-02T00:00:00Z")
    clean = [entry()._replace(began=f"2026-01-0{day}T00:00:00Z") for day in (1, 3, 4)]
    page = report.page([*clean, found], {})
    assert "Runs since then, none of which found anything: 2." in page


def test_remarks_are_of_campaigns_that_found_something() -> None:
    """A remark says what became of a breach; without one there is nothing to remark."""
    broken = {run.campaign for run in kept() if run.broken}
    assert set(report.REMARKS) <= broken


def test_the_page_is_what_the_runs_say() -> None:
    """Nobody edits the page: `python -m tests.campaigns.report` would write the same."""
    assert report.PAGE.read_text() == report.current()


def test_every_campaign_has_a_size_for_ci_and_a_deep_one() -> None:
    """Whatever is a campaign can be run short and long, and has a law."""
    for campaign in report.known().values():
        assert {Size.CI, Size.DEEP} <= set(campaign.plans), campaign.name
        assert campaign.law.endswith(".")


def test_every_campaign_has_a_goal_in_what_it_counts() -> None:
    """Each has one, nothing else has, and what is to be reached is something that is counted."""
    assert set(report.GOALS) == set(report.known())
    for run in kept():
        counted = {*run.counts, report.MINUTES, report.LONGEST}
        assert counted & set(report.GOALS[run.campaign]), run


@pytest.mark.parametrize("name", report.known())
def test_every_campaign_is_shown_to_bite(name: str) -> None:
    """A test plants a fault, and demands that the campaign finds it."""
    path, _, test = BITES[name].partition("::")
    text = (ROOT / path).read_text()
    found = next(each for each in ast.walk(ast.parse(text)) if getattr(each, "name", "") == test)
    assert {"faults", "missing"} & {
        each.attr for each in ast.walk(found) if isinstance(each, ast.Attribute)
    }
    assert name in text or name == "links"


def test_a_run_that_breaks_a_law_ends_with_1_and_says_how_to_repeat_it(tmp_path: Path) -> None:
    """A failure prints the one command that runs it again."""
    program = (
        "from tests.campaigns._record import *\n"
        "plans = {Size.CI: None}\n"
        "def run(plan, seed): return Tally(faults=[f'broken with {seed}'])\n"
        "raise SystemExit(Campaign('example', 'A law.', plans, run)"
        ".main(['--seed', '7', '--no-record']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "BROKEN: broken with 7" in done.stdout
    assert "again: python -m tests.campaigns.example --size ci --seed 7" in done.stdout


def test_a_campaign_hands_the_plan_and_the_seed_on() -> None:
    """`conduct` runs the plan of the size with the seed it was given."""
    seen = []

    def run(plan: str, seed: int) -> Tally:
        seen.append((plan, seed))
        return Tally()

    campaign = Campaign("example", "A law.", {Size.CI: "short", Size.DEEP: "long"}, run)
    assert campaign.conduct(Size.DEEP, 3).size == "deep"
    assert seen == [("long", 3)]


def test_a_campaign_goes_on_with_the_next_seed_until_a_law_is_broken() -> None:
    """`--minutes` makes many runs of a size, and ends early with the first that found something."""
    seen = []

    def run(plan: str, seed: int) -> Tally:
        seen.append(seed)
        return Tally(faults=["broken"] if seed == 5 else [])

    campaign = Campaign("example", "A law.", {Size.CI: "short"}, run)
    assert campaign.main(["--seed", "3", "--minutes", "60", "--no-record"]) == 1
    assert seen == [3, 4, 5]
    assert campaign.main(["--seed", "6", "--no-record"]) == 0
    assert seen == [3, 4, 5, 6]
