"""What a worker is started with: the tasks on an app that its environment describes."""

from __future__ import annotations

import json
import os

from tests.support.celery_tasks import create_app

app = create_app(
    os.environ["TESTS_CELERY_BROKER"],
    os.environ["TESTS_CELERY_RESULTS"],
    **json.loads(os.environ.get("TESTS_CELERY_SETTINGS") or "{}"),
)
app.set_current()
app.set_default()
