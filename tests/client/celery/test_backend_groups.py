"""Groups saved and restored, and reading many results at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import states
from celery.result import GroupResult

from resultd.celery import backend as backend_module
from tests.client.celery.conftest import MakeApp
from tests.support.celery_backend import count_calls
from tests.support.results import later

NewId = Callable[[], str]


def group_of(app: Any, group_id: str, size: int, **more: Any) -> Any:
    """A group's result with so many members."""
    members = [app.AsyncResult(f"{group_id}-{number}") for number in range(size)]
    return app.GroupResult(group_id, members, **more)


class TestSaving:
    @pytest.mark.parametrize("size", [0, 1, 5_000])
    def test_of_any_size(self, app: Any, new_id: NewId, size: int) -> None:
        """What comes back is equal, member by member."""
        saved = group_of(app, new_id(), size)
        assert saved.save() is saved
        restored = app.GroupResult.restore(saved.id)
        assert isinstance(restored, GroupResult)
        assert restored.as_tuple() == saved.as_tuple()
        assert restored.app is app

    def test_with_parents_and_groups_within(self, app: Any, new_id: NewId) -> None:
        """The whole tree."""
        inner = group_of(app, new_id(), 2)
        parent = app.AsyncResult("parent", parent=app.AsyncResult("grandparent"))
        child = app.AsyncResult("child", parent=inner)
        saved = app.GroupResult(new_id(), [inner, child], parent=parent)
        saved.save()
        assert app.GroupResult.restore(saved.id).as_tuple() == saved.as_tuple()

    @pytest.mark.parametrize("serializer", ["json", "pickle", "yaml", "msgpack"])
    @pytest.mark.parametrize("compression", [None, "gzip", "bzip2"])
    def test_through_each_serializer(
        self, make_app: MakeApp, new_id: NewId, serializer: str, compression: str | None
    ) -> None:
        """Compressed or not."""
        app = make_app(
            result_serializer=serializer,
            result_accept_content=[serializer],
            result_compression=compression,
        )
        saved = group_of(app, new_id(), 3).save()
        found = app.GroupResult.restore(saved.id)
        assert [child.id for child in found] == [child.id for child in saved]

    def test_again_replaces_it(self, app: Any, new_id: NewId) -> None:
        """With more members, with fewer, with others; and the same again."""
        group_id = new_id()
        for size in (2, 5, 1, 1, 0, 3):
            group_of(app, group_id, size).save()
            assert len(app.GroupResult.restore(group_id)) == size

    def test_of_what_was_never_saved(self, app: Any, new_id: NewId) -> None:
        """There is nothing."""
        assert app.GroupResult.restore(new_id()) is None

    def test_deleted_is_gone(self, app: Any, new_id: NewId) -> None:
        """And may be deleted once more, and saved again; the members' results stay."""
        saved = group_of(app, new_id(), 1).save()
        app.backend.mark_as_done(saved[0].id, 1)
        for _ in range(2):
            saved.delete()
            assert app.GroupResult.restore(saved.id) is None
        assert app.AsyncResult(saved[0].id).get(timeout=5) == 1
        saved.save()
        assert app.GroupResult.restore(saved.id) == saved

    def test_does_not_meet_a_chord_of_the_same_id(self, app: Any, new_id: NewId) -> None:
        """A chord's header may be saved: neither knows of the other, whichever comes first."""
        for first in ("saved", "chord"):
            saved = group_of(app, new_id(), 2)
            steps = [
                saved.save,
                lambda saved=saved: app.backend.apply_chord(
                    (saved.id, saved.results), app.tasks["body"].s()
                ),
            ]
            for step in steps if first == "saved" else reversed(steps):
                step()
            app.backend.set_chord_size(saved.id, 2)
            assert app.GroupResult.restore(saved.id) == saved
            saved.delete()
            client = app.backend.client
            assert client.run(client.operations.group(saved.id)).counts.expected_total == 2

    def test_is_cached_if_results_are(
        self, make_app: MakeApp, new_id: NewId, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Until it is reloaded or deleted."""
        app = make_app(result_cache_max=10)
        saved = group_of(app, new_id(), 1).save()
        calls = count_calls(monkeypatch)
        for _ in range(3):
            assert app.backend.restore_group(saved.id) == saved
        assert calls["GetGroup"] == 1
        app.backend.reload_group_result(saved.id)
        assert calls["GetGroup"] == 2
        saved.delete()
        assert app.backend.restore_group(saved.id) is None

    def test_is_kept_as_long_as_results(self, make_app: MakeApp, new_id: NewId) -> None:
        """`result_expires`."""
        app = make_app(result_expires=60)
        saved = group_of(app, new_id(), 1).save()
        client = app.backend.client
        group = client.run(client.operations.group(backend_module.SAVED + saved.id))
        kept = group.expire_time.ToDatetime() - group.updated_time.ToDatetime()
        assert kept.total_seconds() == 60


class TestGetMany:
    def test_gives_each_as_it_is_ready(self, app: Any, backend: Any, new_id: NewId) -> None:
        """Those that are, at once; the others as they come; each once."""
        ids = [new_id() for _ in range(4)]
        backend.mark_as_done(ids[2], 2)
        backend.mark_as_failure(ids[3], ValueError("3"))
        later(0.1, lambda: backend.mark_as_done(ids[0], 0))
        later(0.2, lambda: backend.mark_as_done(ids[1], 1))
        found = list(backend.get_many([*ids, ids[0]], timeout=5))
        assert [task_id for task_id, _ in found][2:] == ids[:2]
        assert {task_id for task_id, _ in found[:2]} == set(ids[2:])
        assert dict(found)[ids[1]]["result"] == 1
        assert isinstance(dict(found)[ids[3]]["result"], ValueError)

    def test_of_nothing_is_nothing(self, backend: Any) -> None:
        """Without a call."""
        assert list(backend.get_many([], timeout=0)) == []
        assert list(backend.get_many(iter(()), max_iterations=1)) == []

    @pytest.mark.parametrize("timeout", [0, 0.15])
    def test_ends_in_time(self, backend: Any, new_id: NewId, timeout: float) -> None:
        """After what there is."""
        ready, missing = new_id(), new_id()
        backend.mark_as_done(ready, 1)
        found = backend.get_many([missing, ready], timeout=timeout)
        assert next(found)[0] == ready
        with pytest.raises(backend.TimeoutError):
            next(found)

    def test_with_one_iteration_does_not_wait(
        self, backend: Any, new_id: NewId, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And is one call, however many ids there are."""
        ids = [new_id() for _ in range(500)]
        for task_id in ids[:3]:
            backend.mark_as_done(task_id, 1)
        calls = count_calls(monkeypatch)
        assert {task_id for task_id, _ in backend.get_many(ids, max_iterations=1)} == set(ids[:3])
        assert dict(calls) == {"BatchGetResults": 1}

    def test_calls_back(self, backend: Any, new_id: NewId) -> None:
        """`on_message` for each, `on_interval` while it waits."""
        task_id, intervals = new_id(), []
        messages: list[Any] = []
        later(0.3, lambda: backend.mark_as_done(task_id, 1))
        found = backend.get_many(
            [task_id],
            timeout=5,
            interval=0.05,
            on_message=messages.append,
            on_interval=lambda: intervals.append(1),
        )
        assert [each for each, _ in found] == [task_id]
        assert [meta["task_id"] for meta in messages] == [task_id]
        assert len(intervals) >= 2

    def test_of_states_that_are_not_the_last(self, backend: Any, new_id: NewId) -> None:
        """If they are what is waited for."""
        task_id = new_id()
        later(0.1, lambda: backend.mark_as_started(task_id))
        wanted = states.READY_STATES | {states.STARTED}
        found = list(backend.get_many([task_id], timeout=5, READY_STATES=wanted))
        assert [meta["status"] for _, meta in found] == [states.STARTED]
