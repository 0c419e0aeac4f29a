"""Laws of the script `resultd`."""

from __future__ import annotations

import subprocess
import sys

import pytest

import resultd.cli


def test_a_bare_install_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without typer there is one sentence that names the extra, and exit code 2."""
    monkeypatch.setitem(sys.modules, "typer", None)
    for name in [name for name in sys.modules if name.startswith("resultd.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit) as ended:
        resultd.cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "resultd: the command line is not installed: pip install 'resultd[cli]'\n"
    )


def test_a_module_of_ours_that_is_missing_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the extra brings is explained away; a broken install stays a traceback."""
    monkeypatch.setitem(sys.modules, "resultd.cli.app", None)
    with pytest.raises(ModuleNotFoundError):
        resultd.cli.main()


def test_the_script_runs() -> None:
    """`resultd --help` works as a process of its own."""
    script = "from resultd.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "--help"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0
    assert "wait" in done.stdout
