"""Laws of the demo's work."""

from __future__ import annotations

from pathlib import Path

import pytest

from resultd.cli.demo import files


@pytest.mark.parametrize("count", [10, 40])
def test_some_of_the_files_cannot_be_read(tmp_path: Path, count: int) -> None:
    """As many files as asked for, none twice, a few of them not UTF-8."""
    chosen = files.choose(count, tmp_path)
    assert len(chosen) == len(set(chosen)) == count
    assert len(files.count(chosen).broken) >= files.BROKEN_MIN


def test_a_python_without_such_files_gets_some_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the tests of the standard library are not installed, broken files are made."""
    monkeypatch.setattr(files, "_BROKEN", ())
    chosen = files.choose(10, tmp_path)
    made = {str(path) for path in chosen if path.parent == tmp_path}
    assert len(made) == files.BROKEN_MIN
    assert made <= files.count(chosen).broken


def test_words_are_runs_of_letters_digits_and_underscores(tmp_path: Path) -> None:
    """What a word is does not depend on the language that counts."""
    path = tmp_path / "x.py"
    path.write_text("a_1 = b2+c  # gr\u00fcn\n", encoding="utf-8")
    assert files.count([path]).words == {str(path): 5}
