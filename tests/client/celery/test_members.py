"""Sets and the parents that they come after: what is never run is not waited for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.client.celery.conftest import MakeApp
from tests.client.celery.test_backend_outages import NOBODY
from tests.client.celery.test_waits import idle
from tests.client.celery.test_waits_sets import done
from tests.support.results import later, until

NewId = Callable[[], str]


@pytest.mark.parametrize("looked_at", ["parent", "grandparent"])
def test_a_parent_that_is_known_to_have_failed(app: Any, new_id: NewId, looked_at: str) -> None:
    """Nobody is told of it any more; nothing else is waited for, what there is is given."""
    grand = app.AsyncResult(new_id())
    parent = app.AsyncResult(new_id(), parent=grand)
    failed = {"parent": parent, "grandparent": grand}[looked_at]
    members = [app.AsyncResult(new_id()) for _ in range(3)]
    group = app.GroupResult(new_id(), members, parent=parent)
    app.backend.mark_as_failure(failed.id, KeyError("first"))
    assert failed.failed()
    with pytest.raises(KeyError, match="first"):
        group.get(timeout=5)
    done(app, members[1])
    app.backend.forget(failed.id)  # it is known
    found = dict(group.iter_native(timeout=5))
    assert [found[member.id]["status"] for member in members] == [
        "FAILURE",
        "SUCCESS",
        "FAILURE",
    ]
    until(lambda: idle(app.backend))


def test_of_several_parents_that_are_known_to_have_failed(app: Any, new_id: NewId) -> None:
    """The first in their order says why."""
    header = [app.AsyncResult(new_id()) for _ in range(3)]
    for part in header[::-1]:
        app.backend.mark_as_failure(part.id, KeyError(part.id))
    assert all(part.failed() for part in header[::-1])
    parent = app.GroupResult(new_id(), header)
    group = app.GroupResult(new_id(), [app.AsyncResult(new_id())], parent=parent)
    with pytest.raises(KeyError, match=header[0].id):
        group.get(timeout=5)


def test_a_known_failure_is_told_without_a_server(
    app: Any, make_app: MakeApp, new_id: NewId
) -> None:
    """That it cannot be asked for the members matters to nobody."""
    away = make_app(NOBODY)
    parent = app.AsyncResult(new_id())
    app.backend.mark_as_failure(parent.id, KeyError("known"))
    assert parent.failed()
    group = away.GroupResult(new_id(), [away.AsyncResult(new_id())], app=away, parent=parent)
    with pytest.raises(KeyError, match="known"):
        group.get()


@pytest.mark.parametrize("looked_at", [False, True])
def test_a_set_within_whose_parent_failed(app: Any, new_id: NewId, looked_at: bool) -> None:
    """Comes to that error as a whole; the others are waited for."""
    parent = app.AsyncResult(new_id())
    inner = app.GroupResult(new_id(), [app.AsyncResult(new_id()) for _ in range(2)], parent=parent)
    outer = app.GroupResult(new_id(), [inner, app.AsyncResult(new_id())])
    single = app.AsyncResult(new_id())
    results = app.GroupResult(new_id(), [outer, single])
    done(app, inner[0])
    if looked_at:
        app.backend.mark_as_failure(parent.id, KeyError("within"))
        assert parent.failed()
    else:
        later(0.1, lambda: app.backend.mark_as_failure(parent.id, KeyError("within")))
    later(0.3, lambda: done(app, single))
    error, value = results.get(timeout=5, propagate=False)
    assert isinstance(error, KeyError)
    assert value == single.id
    with pytest.raises(KeyError, match="within"):
        results.get(timeout=5)
    until(lambda: idle(app.backend))


@pytest.mark.parametrize("looked_at", [False, True])
def test_a_set_within_that_has_run_though_its_parent_failed(
    app: Any, new_id: NewId, looked_at: bool
) -> None:
    """Which was tried once more, say: its values are given."""
    parent = app.AsyncResult(new_id())
    inner = app.GroupResult(new_id(), [app.AsyncResult(new_id())], parent=parent)
    outer = app.GroupResult(new_id(), [inner, app.AsyncResult(new_id())])
    results = app.GroupResult(new_id(), [outer])
    done(app, *inner)
    app.backend.mark_as_failure(parent.id, KeyError("before"))
    assert not looked_at or parent.failed()
    later(0.2, lambda: done(app, outer[1]))
    assert results.get(timeout=5) == [[[inner[0].id], outer[1].id]]
