"""What the chord campaign's workers are started with: the app that their environment describes."""

from __future__ import annotations

import json
import os

from tests.campaigns.chord_tasks import ENVIRONMENT, create_app, record_publications

_said = json.loads(os.environ[ENVIRONMENT])

app = create_app(_said["broker"], _said["backend"], _said["name"], **_said["settings"])
app.set_current()
app.set_default()
record_publications(_said["broker"])
