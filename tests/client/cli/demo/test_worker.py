"""Laws of the demo's worker in Python."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from resultd import Client
from resultd.cli.demo import worker
from resultd.testing import Server


def test_a_worker_reports_and_says_what_became_of_each_task(
    server: Server,
    client: Client,
    new_id: Callable[[], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A line in is a line out; the result, or the error with its traceback, is stored."""
    good, bad, group = new_id(), new_id(), new_id()
    (tmp_path / "good").write_text("one two\n")
    (tmp_path / "bad").write_bytes(b"\xff")
    tasks = [
        {"task_id": task, "path": str(tmp_path / name), "group_id": group, "index": i, "pace": 0}
        for i, (task, name) in enumerate([(good, "good"), (bad, "bad")])
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(map(json.dumps, tasks))))
    worker.main(server.url, "w1")
    said = [json.loads(line)["state"] for line in capsys.readouterr().out.splitlines()]
    assert said == ["SUCCESS", "FAILURE"]
    assert client.AsyncResult(good).get(timeout=5)["words"] == 2
    failed = client.AsyncResult(bad)
    assert failed.worker == "w1"
    assert "UnicodeDecodeError" in (failed.traceback or "")
