"""resultd as Celery's result backend.

    app = Celery("proj", broker="redis://...", backend="resultd://127.0.0.1:7758")

Nothing else changes in the app: Celery finds the backend through the entry point group
`celery.result_backends`, under `resultd`, `resultds` (TLS), `grpc` and `grpcs`. Installed with
`pip install "resultd[celery]"`; this package is the only one that imports celery.
"""

from resultd.celery._errors import TimeoutError  # noqa: A004 (Celery's name)
from resultd.celery._extras import install
from resultd.celery.backend import ResultdBackend

__all__ = ["ResultdBackend", "TimeoutError", "install"]
