"""A worker of the demo: `python -m resultd.cli.demo.worker URL NAME`, tasks on stdin."""

from __future__ import annotations

import functools
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import resultd


def count_words(path: str) -> int:
    """Count the words of UTF-8 text."""
    return len(re.findall(r"[A-Za-z0-9_]+", Path(path).read_text(encoding="utf-8")))


def run(client: resultd.Client, name: str, task: dict[str, Any]) -> str:
    """Run a task and report all that happens to it; the state it ends in."""
    report = functools.partial(
        client.store_result,
        task["task_id"],
        group_id=task["group_id"],
        index=task["index"],
        attempt=1,
        name="count_words",
        worker=name,
    )
    report(None, "RECEIVED")
    report(None, "STARTED")
    try:
        words = count_words(task["path"])
        report({"current": 1, "total": 2}, "PROGRESS")
        time.sleep(task["pace"])  # the rest of the work, so that there is something to watch
        return report({"path": task["path"], "words": words}).state
    except (OSError, UnicodeError) as error:
        return report(error, "FAILURE").state


def main(url: str, name: str) -> None:
    """Run the tasks of stdin, one a line; say on stdout what became of each."""
    with resultd.Client(url) as client:
        for line in sys.stdin:
            task = json.loads(line)
            state = run(client, name, task)
            print(json.dumps({"task_id": task["task_id"], "state": state}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
