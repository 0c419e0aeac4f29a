"""The app and the tasks of the page "Results and State Management", as the page has them.

Added: where the results go, and `install`, which gives Celery's results what the page lists
and Celery lacks.
"""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery

import resultd.celery

app = Celery(
    "example",
    broker=os.environ["TESTS_CELERY_BROKER"],
    backend=os.environ["TESTS_CELERY_RESULTS"],
    set_as_current=False,  # other tests of this process have apps of their own
)
resultd.celery.install(app)


@app.task  # type: ignore[untyped-decorator]  # Celery has no types
def add(x: Any, y: Any) -> Any:
    """Add, slowly."""
    time.sleep(2)  # Simulate work
    return x + y


@app.task  # type: ignore[untyped-decorator]  # Celery has no types
def divide(x: float, y: float) -> float:
    """Divide, or fail."""
    if y == 0:
        raise ValueError("Cannot divide by zero")
    return x / y


@app.task(bind=True)  # type: ignore[untyped-decorator]  # Celery has no types
def task_with_progress(self: Any, total_items: int) -> dict[str, Any]:
    """Task that reports progress."""
    for i in range(total_items):
        # Update task state with progress info
        self.update_state(state="PROGRESS", meta={"current": i + 1, "total": total_items})
        time.sleep(0.1)
    return {"status": "Complete", "processed": total_items}
