"""The client for threads: storing, waiting, looking around."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import resultd
from resultd._records import Report
from resultd.client import Client
from resultd.errors import (
    ClientClosedError,
    GroupNotFoundError,
    InvalidArgumentError,
    ResultGoneError,
    TaskError,
)
from resultd.testing import Server
from tests.support import workers
from tests.support.results import later, until

NewId = Callable[[], str]


def test_an_outcome_says_what_became_of_a_report(client: Client, new_id: NewId) -> None:
    """Disposition, state, version, and what it meant to its group."""
    task_id, group_id = new_id(), new_id()
    client.group(group_id).create([task_id])
    started = client.store_result(task_id, None, "STARTED")
    assert started[:4] == ("APPLIED", "STARTED", 1, "")
    done = client.store_result(task_id, 1, group_id=group_id, index=0)
    assert done[:4] == ("APPLIED", "SUCCESS", 2, "COUNTED")
    assert done.complete_group_ids == (group_id,)
    again = client.store_result(task_id, 1, group_id=group_id, index=0)
    assert (again.disposition, again.membership) == ("DUPLICATE", "ALREADY")
    assert client.store_result(task_id, ValueError(), "FAILURE").disposition == "SUPERSEDED"


def test_a_batch_has_an_outcome_for_each(client: Client, new_id: NewId) -> None:
    """Refused and unencodable ones among 2,500 do not keep the others from being stored."""
    ids = [new_id() for _ in range(2500)]
    reports = [resultd.Report(task_id, n) for n, task_id in enumerate(ids)]
    reports[7] = resultd.Report("bad\nid", 1)
    reports[8] = resultd.Report(new_id(), object())
    outcomes = client.store_results(reports)
    assert [n for n, outcome in enumerate(outcomes) if outcome.error] == [7, 8]
    assert isinstance(outcomes[7].error, InvalidArgumentError)
    assert isinstance(outcomes[8].error, resultd.SerializationError)
    kept = [client.AsyncResult(i) for n, i in enumerate(ids) if n not in (7, 8)]
    assert client.ResultSet(kept).successful()
    assert client.store_results([]) == []
    assert client.store_results([("bad\nid", 1)])[0].error is not None


def test_large_values_are_cut_into_calls(client: Client, new_id: NewId) -> None:
    """20 MB in one store_results and one get; one that is too large spoils nothing."""
    ids = [new_id() for _ in range(10)]
    value = "x" * 2_000_000
    outcomes = client.store_results([*((i, value) for i in ids), (new_id(), "x" * 4_000_000)])
    assert [outcome.disposition for outcome in outcomes] == ["APPLIED"] * 10 + [""]
    assert outcomes[10].error is not None
    assert outcomes[10].error.reason == "VALUE_TOO_LARGE"
    values = client.ResultSet([client.AsyncResult(i) for i in ids]).get(timeout=20)
    assert values == [value] * 10


def test_wait_has_three_ends(client: Client, new_id: NewId) -> None:
    """All, the first, the first exception; and the time."""
    results = [client.AsyncResult(new_id()) for _ in range(3)]
    client.store_result(results[0].id, 1)
    assert client.wait(results, "FIRST_COMPLETED").done == results[:1]
    later(0.05, lambda: client.store_result(results[1].id, KeyError(), "FAILURE"))
    done, pending = client.wait(results, "FIRST_EXCEPTION", timeout=5)
    assert (done, pending) == (results[:2], results[2:])
    assert client.wait(results, timeout=0.05).pending == results[2:]
    client.store_result(results[2].id, 1)
    assert client.wait(results, timeout=5).pending == []
    with pytest.raises(ValueError, match="return_when"):
        client.wait(results, "SOMETIME")  # type: ignore[arg-type]  # the mistake


def test_as_completed_gives_results_in_order_of_completion(client: Client, new_id: NewId) -> None:
    """Failed ones as well, without raising."""
    results = [client.AsyncResult(new_id()) for _ in range(3)]
    completed = client.as_completed(results, timeout=5)
    for index in (1, 2, 0):
        client.store_result(results[index].id, ValueError(), "FAILURE")
        assert next(completed) is results[index]
    assert list(completed) == []


def test_forget_and_revoke_take_anything_with_ids(client: Client, new_id: NewId) -> None:
    """An id, ids, results, sets of them."""
    ids = [new_id() for _ in range(4)]
    client.store_results([(i, 1) for i in ids])
    group = client.GroupResult(new_id(), [client.AsyncResult(ids[3])])
    assert client.forget(ids[0]) == 1
    assert client.forget([ids[1], client.AsyncResult(ids[2])]) == 2
    assert client.forget([group]) == 1
    assert client.forget(client.AsyncResult(ids[0])) == 0
    fresh = new_id()
    assert client.revoke([fresh], reason="no need").revoked == (fresh,)
    client.store_result(ids[0], 2)
    assert client.revoke([fresh, ids[0]]).terminal == (ids[0],)
    with pytest.raises(resultd.TaskRevokedError, match="no need"):
        client.AsyncResult(fresh).get()


def test_lists_are_paged_and_filtered(client: Client, new_id: NewId) -> None:
    """By state, name, group and time."""
    name, ids, began = new_id(), [new_id() for _ in range(25)], time.time() - 1
    client.store_results([{"task_id": i, "result": 1, "name": name} for i in ids])
    client.store_result(ids[0] + "x", ValueError(), "FAILURE", name=name)
    listed = list(client.list_results(name=name, states=["SUCCESS"], page_size=10, since=began))
    assert sorted(meta["task_id"] for meta in listed) == sorted(ids)
    assert listed[0]["status"] == "SUCCESS"
    group = client.group(new_id()).create(ids)
    found = [meta["task_id"] for meta in client.list_results(group_id=group.id)]
    assert sorted(found) == sorted(ids)
    assert group.id in [g.group_id for g in client.list_groups(page_size=3)]
    assert group.id not in [g.group_id for g in client.list_groups(incomplete=True)]


def test_the_server_says_who_it_is(client: Client) -> None:
    """Version, engine, limits."""
    info = client.server_info()
    assert (info.engine, info.limits["ids_per_call"]) == (workers.ENGINE, 10_000)
    assert info.start_time is not None


def test_a_closed_client_ends_its_waits(server: Server, new_id: NewId) -> None:
    """And refuses to be used; another client of the same address goes on."""
    with Client(server.url + "/closing") as other:
        client = Client(server.url + "/closing")
        client.server_info()
        other.server_info()
        client.close()
        client.close()
        with pytest.raises(RuntimeError, match="closed"):
            client.server_info()
        other.server_info()
        errors: list[BaseException] = []

        def wait() -> None:
            try:
                other.AsyncResult(new_id()).get(timeout=10)
            except resultd.UnavailableError as error:
                errors.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        watcher = other.watcher()
        while not watcher.streaming:
            time.sleep(0.005)
    thread.join(5)
    assert [str(error) for error in errors] == ["the client was closed"]


def test_a_closed_client_ends_its_own_waits_only(server: Server, new_id: NewId) -> None:
    """Another client of its address waits on, over the connection and the stream they shared."""
    url = server.url + "/sharing"
    with Client(url) as other, ThreadPoolExecutor() as threads:
        client, told, kept = Client(url), list[BaseException](), new_id()
        client.AsyncResult(new_id()).then(print, told.append)
        weak = client.AsyncResult(new_id())
        weak.then(print, told.append, weak=True)
        ended = [
            threads.submit(client.AsyncResult(new_id()).get),
            threads.submit(client.ResultSet([client.AsyncResult(new_id())]).get),
            threads.submit(client.group(new_id()).get),
            threads.submit(lambda: list(client.watch_revocations(["never"]))),
        ]
        goes_on = threads.submit(other.AsyncResult(kept).get, 20)
        endpoint = other._open()
        # One stream for all waits, and one each for the group and the revocations.
        until(lambda: len(endpoint.watcher._hub.waiters) == 5 and len(endpoint._streams) == 3)
        client.close()
        assert [type(each.exception(20)) for each in ended] == [ClientClosedError] * 4
        assert [type(each) for each in told] == [ClientClosedError] * 2
        until(lambda: len(endpoint.watcher._hub.waiters) == 1 and len(endpoint._streams) == 1)
        other.store_result(kept, 1)
        assert goes_on.result(20) == 1


def test_a_client_can_be_pickled(server: Server, new_id: NewId) -> None:
    """What comes out works, serializer included."""
    with pickle.loads(pickle.dumps(Client(server.url, serializer="json"))) as back:
        assert isinstance(back, Client)
        back.store_result(new_id(), 1)
        assert repr(back) == f"<resultd.client.Client {server.url}>"


def test_namespaces_do_not_see_each_other(client: Client, server: Server, new_id: NewId) -> None:
    """The same id in two namespaces is two tasks."""
    task_id = new_id()
    client.store_result(task_id, 1)
    with Client(server.url + "/other") as other:
        assert not other.AsyncResult(task_id).exists()


class TestGroupHandle:
    def test_a_group_streams_as_its_members_complete(self, client: Client, new_id: NewId) -> None:
        """With index, position, state and result; in member order where asked."""
        ids = [new_id() for _ in range(4)]
        group = client.group(new_id()).create(ids)
        client.store_result(ids[2], "c")
        client.store_result(ids[0], ValueError("a"), "FAILURE")
        members = group.as_completed(timeout=5)
        third, first = next(members), next(members)
        assert (third.index, third.id, third.position, third.state) == (2, ids[2], 1, "SUCCESS")
        assert third.value() == "c"
        assert isinstance(first.value(propagate=False), ValueError)
        with pytest.raises(ValueError, match="a"):
            first.value()
        client.store_results([(ids[1], "b"), (ids[3], "d")])
        assert [m.index for m in members] == [1, 3]
        assert [m.index for m in group.as_completed(order="member")] == [0, 1, 2, 3]
        assert group.get(propagate=False)[1:] == ["b", "c", "d"]
        with pytest.raises(ValueError, match="a"):
            list(group.iterate())
        info = group.get_info()
        assert (info.done, info.failed, info.complete, info.outcome) == (4, 1, True, "FAILURE")

    def test_a_group_that_does_not_exist_yet_is_waited_for(
        self, client: Client, new_id: NewId
    ) -> None:
        """Unless it is to be known; and not for ever where a timeout is given."""
        group = client.group(new_id())
        assert not group.exists()
        with pytest.raises(GroupNotFoundError):
            list(group.iterate(require_known=True))
        with pytest.raises(TimeoutError):
            list(group.iterate(timeout=0.1))
        with pytest.raises(ValueError, match="order is"):
            list(group.iterate(order="random"))  # type: ignore[arg-type]  # the mistake
        task_id = new_id()
        later(0.1, lambda: group.create([task_id]))
        later(0.15, lambda: client.store_result(task_id, 1))
        assert list(group.iterate(timeout=5)) == [1]

    def test_members_that_are_gone_are_said(self, client: Client, new_id: NewId) -> None:
        """A forgotten result counted; its value is an error, raised or given."""
        ids = [new_id(), new_id()]
        group = client.group(new_id()).create(ids)
        client.store_results([(i, 1) for i in ids])
        client.forget(ids[0])
        with pytest.raises(ResultGoneError):
            list(group.iterate(timeout=5))
        values = list(group.iterate(timeout=5, propagate=False))
        assert [isinstance(value, ResultGoneError) for value in values] == [True, False]

    def test_groups_in_groups_are_members(self, client: Client, new_id: NewId) -> None:
        """Their outcome counts, their failure is a TaskError."""
        good, bad = new_id(), new_id()
        inner = [client.group(new_id()).create([good]), client.group(new_id()).create([bad])]
        outer = client.group(new_id()).create(inner)
        client.store_result(good, 1)
        client.store_result(bad, KeyError(), "FAILURE")
        members = sorted(outer.as_completed(timeout=5), key=lambda m: m.index)
        assert [m.state for m in members] == ["SUCCESS", "FAILURE"]
        assert members[0].value() is None
        assert members[0].group is not None
        with pytest.raises(TaskError, match="a member of the group"):
            members[1].value()

    def test_a_group_that_is_deleted_ends_its_streams(self, client: Client, new_id: NewId) -> None:
        """With ResultGoneError, or complete as it was."""
        group = client.group(new_id()).create([new_id()])
        later(0.1, group.delete)
        with pytest.raises(ResultGoneError):
            list(group.iterate(timeout=5))

    def test_groups_grow_until_they_are_sealed(self, client: Client, new_id: NewId) -> None:
        """Members with and without an index, a total that is raised, then no more."""
        ids = [new_id() for _ in range(4)]
        group = client.group(new_id()).create(ids[:1], seal=False, labels={"a": "b"}, ttl=60)
        assert group.add([]).members == 1
        assert group.add(ids[1:2]).members == 2
        assert group.add(ids[2:3], start=2).members == 3
        group.add_to_total(1, request_id="once")
        group.add_to_total(1, request_id="once")
        assert group.seal(3).total == 4
        client.store_result(ids[3], 1, group_id=group.id)
        with pytest.raises(resultd.errors.GroupSealedError):
            group.add([new_id()])
        assert [m.id for m in group.members()] == ids
        assert not group.ready()
        assert group.get_info().labels == {"a": "b"}
        with pytest.raises(resultd.errors.GroupTotalMismatchError):
            group.seal(9)

    def test_one_claimant_acts_on_a_complete_group(self, client: Client, new_id: NewId) -> None:
        """It gets the continuation; others are told to wait, later that it is done."""
        task_id = new_id()
        group = client.group(new_id()).create(
            [task_id], continuation={"do": "sum"}, claim_scope="tests"
        )
        assert group.claim().outcome == "INCOMPLETE"
        client.store_result(task_id, 1)
        claim = group.claim(lease=5, holder="me")
        assert claim.granted
        assert claim.group.continuation == {"do": "sum"}
        assert group.claim(token=claim.token).granted
        assert group.claim(holder="you").outcome == "HELD"
        assert group.claim_done("not mine").outcome == "LOST"
        assert group.claim_release(claim.token).granted
        claim = group.claim()
        assert group.claim_done(claim.token).granted
        assert group.claim().outcome == "DONE"
        assert repr(group).startswith(f"<group {group.id} at resultd://")

    def test_the_last_report_claims_its_group(self, client: Client, new_id: NewId) -> None:
        """Alone and in a batch; the claim is one as any other, for the token it chose."""
        ids = [new_id() for _ in range(2)]
        group = client.group(new_id()).create(ids, continuation="sum")
        first = client.store_result(ids[0], 1, group_id=group.id, claim="mine")
        last = Report(ids[1], 2, group_id=group.id, index=1, claim="mine", worker="me")
        other = Report(ids[1], 2, group_id=group.id, index=1, claim="yours")
        outcomes = client.store_results([last, other])
        assert [each.claim for each in (first, *outcomes)] == ["", "GRANTED", "HELD"]
        held = group.get_info()
        assert (held.continuation, held.meta.claim.holder) == ("sum", "me")
        assert group.claim("mine", lease=60).granted
        assert group.claim_done("mine").granted
        again = client.store_result(ids[1], 2, group_id=group.id, index=1, claim="mine")
        assert again.claim == "DONE"

    def test_running_a_group_again_begins_an_epoch(self, client: Client, new_id: NewId) -> None:
        """An empty group of the same name takes its place."""
        group = client.group(new_id()).create([new_id()])
        again = client.group(group.id).create([new_id(), new_id()], new_epoch=True)
        assert (again.get_info().epoch, again.get_info().members) == (2, 2)


class TestRevocations:
    def test_a_worker_hears_of_what_it_runs(self, client: Client, new_id: NewId) -> None:
        """Those already asked for first; each once; not those it no longer runs."""
        ids = [new_id() for _ in range(3)]
        client.store_results([(i, None, "STARTED") for i in ids])
        client.revoke(ids[0], terminate=True)
        with client.watch_revocations(ids) as watch:
            heard = iter(watch)
            assert next(heard).task_id == ids[0]
            watch.remove([ids[1]])
            client.revoke(ids[1:])
            assert next(heard).task_id == ids[2]

    def test_callbacks_come_from_a_thread(self, client: Client, new_id: NewId) -> None:
        """Until the watch is closed."""
        task_id, done = new_id(), threading.Event()
        heard: list[Any] = []

        def hear(revocation: object) -> None:
            heard.append(revocation)
            done.set()

        client.store_result(task_id, None, "STARTED")
        watch = client.watch_revocations(callback=hear)
        watch.add([task_id])
        client.revoke(task_id, signal=9, reason="enough")
        assert done.wait(5)
        assert heard[0][:4] == (task_id, False, "SIGKILL", "enough")
        watch.close()
