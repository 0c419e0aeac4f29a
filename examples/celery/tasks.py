"""The app: counts the words of files.

    celery -A tasks worker

`CELERY_BROKER_URL` and `CELERY_RESULT_BACKEND` name another broker and another server.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from celery import Celery, Task

import resultd.celery

app = Celery(
    "words",
    broker="redis://127.0.0.1:6379/0",
    backend="resultd://127.0.0.1:7758",
)
app.conf.task_track_started = True
resultd.celery.install(app)  # iterate() and await, which Celery's results lack

CHUNK_LINES = 1000


@app.task(bind=True)
def count_words(self: Task, path: str) -> dict[str, int]:
    """Counts how often each word of a file is in it; says how far it is."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    words: Counter[str] = Counter()
    for start in range(0, len(lines), CHUNK_LINES):
        self.update_state(state="PROGRESS", meta={"current": start, "total": len(lines)})
        for line in lines[start : start + CHUNK_LINES]:
            words.update(re.findall(r"[a-z']+", line.lower()))
    return dict(words)


@app.task
def most_frequent(counts: list[dict[str, int]], number: int) -> list[tuple[str, int]]:
    """Adds up counts; gives the words that are in there most."""
    words: Counter[str] = Counter()
    for count in counts:
        words.update(count)
    return sorted(words.items(), key=lambda item: (-item[1], item[0]))[:number]
