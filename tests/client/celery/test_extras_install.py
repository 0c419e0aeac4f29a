"""Laws of `install`: what it changes, what it leaves alone, when it may be called."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import celery._state
import celery.result
import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured

from resultd.celery import install
from resultd.testing import Server


def bare_app(backend: str | None = None) -> Any:
    """An app that is not the current one."""
    return Celery("bare", broker="memory://", backend=backend, set_as_current=False)


@pytest.mark.parametrize(
    "url", ["redis://:secret@127.0.0.1/1", "cache+memory://", "rpc://", "disabled://"]
)
def test_another_backend_is_refused(url: str) -> None:
    """At once where the app says which it is; a password is not shown."""
    with pytest.raises(ImproperlyConfigured, match="not resultd") as refused:
        install(bare_app(url))
    assert "secret" not in str(refused.value)


async def test_a_backend_that_turns_out_to_be_another_cannot_be_awaited() -> None:
    """Where it is not known yet it is refused when a result is awaited."""
    app = install(bare_app())
    app.conf.result_backend = "cache+memory://"
    with pytest.raises(ImproperlyConfigured, match="only results of a resultd backend"):
        await app.AsyncResult("t")
    app.close()


def test_the_configuration_is_not_loaded(server: Server) -> None:
    """It may follow, and who asked to hear of `on_after_configure` later still does."""
    app, heard = install(bare_app()), []
    app.on_after_configure.connect(lambda **_: heard.append("configured"), weak=False)
    assert not app.configured
    app.config_from_object({"result_backend": server.url, "broker_url": "memory://"})
    app.backend.store_result("install-1", 7, "SUCCESS")
    assert app.AsyncResult("install-1").return_value == 7
    assert heard == ["configured"]
    app.close()


def test_twice_is_once(app: Any) -> None:
    """The second call changes nothing."""
    classes = [getattr(install(app), name) for name in ("AsyncResult", "ResultSet", "GroupResult")]
    install(app)
    assert [app.AsyncResult, app.ResultSet, app.GroupResult] == classes


def test_other_apps_keep_their_results(make_app: Callable[..., Any]) -> None:
    """Only the app's own results can be awaited."""
    install(make_app())
    other = make_app()
    assert not hasattr(other.AsyncResult("t"), "__await__")
    assert not hasattr(other.GroupResult("g", []), "__await__")


def test_a_class_of_the_apps_own_is_extended(app: Any) -> None:
    """What a program made of `app.AsyncResult` before stays."""

    class Named(app.AsyncResult):  # type: ignore[misc]  # a class that an app makes
        def shout(self) -> str:
            return str(self.id).upper()

    app.AsyncResult = Named
    result = install(app).AsyncResult("t")
    assert result.shout() == "T"
    assert result.retry() is False


def test_every_way_to_a_result_leads_to_the_same_class(app: Any) -> None:
    """By the app, by a task, by a signature, restored, out of a tuple."""
    install(app)

    @app.task(name="install.task", shared=False)  # type: ignore[untyped-decorator]  # Celery's
    def task() -> None:
        """Do nothing."""

    result = task.AsyncResult("t")
    assert isinstance(result, app.AsyncResult)
    assert isinstance(task.s().freeze("t"), app.AsyncResult)
    group = app.GroupResult("install-g", [result]).save()
    restored = app.GroupResult.restore("install-g")
    assert restored == group
    assert isinstance(restored, app.GroupResult)
    assert isinstance(restored[0], app.AsyncResult)
    assert isinstance(celery.result.result_from_tuple(result.as_tuple(), app), app.AsyncResult)


def test_results_are_copied_and_pickled_as_before(
    app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pickle names the class of the app that reads it."""
    monkeypatch.setattr(celery._state._tls, "current_app", app)  # in this thread
    result = install(app).AsyncResult("t")
    assert type(copy.copy(result)) is app.AsyncResult
    read = pickle.loads(pickle.dumps(result))
    assert read == result
    assert isinstance(read, app.AsyncResult)


def test_celerys_own_set_gets_iterate(app: Any) -> None:
    """The class that programs import has no app to be extended by."""
    install(app).backend.store_result("install-2", 5, "SUCCESS")
    results = celery.result.ResultSet([app.AsyncResult("install-2")])
    assert list(results.iterate(timeout=10)) == [5]
