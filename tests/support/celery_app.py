"""What a worker is started with: the tasks on an app that its environment describes."""

from __future__ import annotations

import json
import os

from tests.support.celery_tasks import create_app

app = create_app(
    os.environ["RESULTD_TEST_BROKER"],
    os.environ["RESULTD_TEST_BACKEND"],
    **json.loads(os.environ.get("RESULTD_TEST_SETTINGS") or "{}"),
)
app.set_current()
app.set_default()
