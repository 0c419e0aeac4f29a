"""How calls are taken up: with gRPC's core in a test's hands, and on a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # gRPC's own insides, untyped

from resultd.v1 import result_service_pb2 as pb
from resultd_server import acceptance
from resultd_server.acceptance import QUESTIONS, Acceptance, Method
from tests.support.in_process import Served, serving, until
from tests.support.refusals import taken_apart
from tests.support.reports import success

STORE = "/resultd.v1.ResultService/StoreResult"


async def serve(request: bytes, _: object) -> bytes:
    """A handler."""
    return request


METHOD = Method(
    "some.Service",
    "Some",
    grpc.unary_unary_rpc_method_handler(serve),
    grpc.stream_unary_rpc_method_handler(serve),
)


class Core:
    """gRPC's part: answers questions when it is told to."""

    def __init__(self) -> None:
        self.questions: list[asyncio.Future[object]] = []
        self.begun: list[tuple[object, object]] = []
        self.registered: dict[str, Any] = {}
        self.running = True
        self.ours: frozenset[bytes] = frozenset()
        self._server = self

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """As gRPC's server does."""
        self.registered[service] = handlers

    def is_running(self) -> bool:
        """As gRPC's does."""
        return self.running

    async def _request_registered_call(self, method: bytes) -> object:
        assert method == METHOD.path.encode()
        self.questions.append(asyncio.get_running_loop().create_future())
        return await self.questions[-1]

    def answer(self, number: int) -> None:
        """So many calls have come."""
        for call in range(number):
            self.questions.pop(0).set_result(call)

    def fail(self, error: type[Exception] = cygrpc._RequestCallError) -> None:
        """Every question fails."""
        asked, self.questions = self.questions, []
        for question in asked:
            question.set_exception(error())

    async def handle(
        self, path: str, resolver: object, _: tuple[()], state: object, *__: object
    ) -> None:
        """As `_handle_rpc`."""
        self.begun.append((state, resolver))

    async def schedule(self, work: Any, *_: object) -> None:
        """As `_schedule_rpc_coro`."""
        await work


class Bound:
    """Full when it is said to be."""

    is_full = False

    def full(self) -> bool:
        """Says so."""
        return self.is_full


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Core:
    """In gRPC's place."""
    core = Core()
    monkeypatch.setattr(cygrpc, "_handle_rpc", core.handle)
    monkeypatch.setattr(cygrpc, "_schedule_rpc_coro", core.schedule)
    monkeypatch.setattr(cygrpc, "_MethodResolver", lambda _, handlers: handlers[METHOD.path])
    return core


async def started(
    core: Core, bound: Bound, on_failure: Callable[[BaseException], None] = print
) -> Acceptance:
    """An acceptance of one method."""
    found = Acceptance(core, [METHOD], bound, on_failure)  # type: ignore[arg-type]  # what it needs
    found.start()
    await asyncio.sleep(0)
    return found


async def test_calls_that_come_together_begin_together(core: Core) -> None:
    """As many as questions are open begin in the same turns of the loop, not one after another."""
    taken = await started(core, Bound())
    assert core.ours == {METHOD.path.encode()}
    assert core.registered == {"some.Service": {"Some": METHOD.serve}}
    assert len(core.questions) == QUESTIONS
    core.answer(QUESTIONS)
    for _ in range(3):  # the question, its call, and what that schedules
        await asyncio.sleep(0)
    assert core.begun == [(number, METHOD.serve) for number in range(QUESTIONS)]
    assert len(core.questions) == QUESTIONS
    core.running = False
    core.fail()
    await taken.ended()


async def test_a_call_is_refused_unread_while_there_is_no_room(core: Core) -> None:
    """What there is room for when a call comes decides, not what there was at the question."""
    bound = Bound()
    taken = await started(core, bound)
    for bound.is_full in (True, False):
        core.answer(1)
        for _ in range(3):
            await asyncio.sleep(0)
    assert [resolver for _, resolver in core.begun] == [METHOD.refuse, METHOD.serve]
    core.running = False
    core.fail()
    await taken.ended()


async def test_a_question_that_fails_is_asked_again_while_the_server_runs(core: Core) -> None:
    """A call may be over before it began; and the end of the server ends the asking."""
    taken = await started(core, Bound())
    core.fail()
    await asyncio.sleep(0)
    assert len(core.questions) == QUESTIONS
    core.running = False
    core.fail()
    await taken.ended()
    assert core.questions == []


async def test_a_question_that_ends_otherwise_is_told(core: Core) -> None:
    """A method nobody asks for any more is deaf: the server must not go on as if it were not."""
    errors: list[BaseException] = []
    taken = await started(core, Bound(), errors.append)
    core.fail(cygrpc.InternalError)
    await taken.ended()
    assert [type(each) for each in errors] == [cygrpc.InternalError] * QUESTIONS


async def test_a_server_that_is_deaf_ends(served: Served) -> None:
    """It says so, and its process stops as after any other failure."""
    served.app._acceptance._on_failure(cygrpc.InternalError())
    assert served.app.failed.is_set()


async def test_gRPCs_own_loop_asks_for_none_of_our_methods(  # noqa: N802  it is written so
    served: Served,
) -> None:
    """What it waits for in their place never comes."""
    core = served.app._acceptance._core
    assert STORE.encode() in core.ours
    assert not core._never.done()


HIDDEN = [name for _, name in acceptance._TAKE] + ["_MethodResolver", "_RequestCallError"]


@pytest.mark.parametrize("name", [*HIDDEN, "nothing"])
def test_a_gRPC_that_lacks_something_is_not_known(  # noqa: N802  it is written so
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever is missing; and it is known where nothing is."""
    monkeypatch.setattr(acceptance, "cygrpc", Without(cygrpc, name))
    taking = {(Without(at, name), each): takes for (at, each), takes in acceptance._TAKE.items()}
    monkeypatch.setattr(acceptance, "_TAKE", taking)
    assert acceptance._known() is (name == "nothing")


@pytest.mark.parametrize("function", acceptance._TAKE)
def test_a_gRPC_that_takes_something_else_is_not_known(  # noqa: N802  it is written so
    monkeypatch: pytest.MonkeyPatch, function: tuple[object, str]
) -> None:
    """A function of the same name with one argument more."""
    more = {**acceptance._TAKE, function: (*acceptance._TAKE[function], "more")}
    monkeypatch.setattr(acceptance, "_TAKE", more)
    assert not acceptance._known()


class Without:
    """All of something but one attribute."""

    def __init__(self, whole: object, name: str) -> None:
        self._whole, self._name = whole, name

    def __getattr__(self, name: str) -> Any:
        if name == self._name:
            raise AttributeError(name)
        return getattr(self._whole, name)


def test_the_gRPC_of_today_is_known() -> None:  # noqa: N802  it is written so
    """Where it is not, calls cost half as much again: `acceptance.py` has to learn its insides."""
    assert acceptance.KNOWN


@pytest.fixture
def full(served: Served) -> Served:
    """A server with as many calls under way as it takes."""
    served.app._acceptance._bound._maximum = 0  # type: ignore[attr-defined]  # a CallBound
    return served


async def test_a_full_server_refuses_before_there_is_a_request(full: Served) -> None:
    """A call that has sent nothing yet is OVERLOADED, with the time to come back."""
    async with grpc.aio.insecure_channel(full.address) as channel:
        call: Any = channel.stream_unary(STORE)()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
    refusal = taken_apart(caught.value)
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "OVERLOADED")
    assert refusal.retry_delay_s == 1


async def test_a_full_server_refuses_large_requests_that_are_on_their_way(full: Served) -> None:
    """The refusal comes through although most of the request was not asked for."""
    calls = [full.results.StoreResult(success(f"t{n}", b"x" * 2**20)) for n in range(8)]
    said = await asyncio.gather(*calls, return_exceptions=True)
    refused = [each for each in said if isinstance(each, grpc.aio.AioRpcError)]
    assert [taken_apart(each).reason for each in refused] == ["OVERLOADED"] * 8


async def test_streams_begin_while_calls_are_refused(full: Served) -> None:
    """Waiters have a bound of their own."""
    frames = full.results.WaitFor(pb.WaitForRequest(task_ids=["t"]))
    await until(lambda: full.waiting() == (1, 1, 1))
    frames.cancel()
    await full.idle()


async def test_a_gRPC_that_is_not_known_serves_as_it_does(  # noqa: N802  it is written so
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With other insides the methods are served by gRPC's own loop."""
    monkeypatch.setattr(acceptance, "KNOWN", False)
    async with serving() as served:
        stored = await asyncio.gather(
            *(served.results.StoreResult(success(f"t{n}")) for n in range(20))
        )
        assert len(stored) == 20
        assert served.app._acceptance._askers == []


async def test_no_question_is_open_after_a_server_has_stopped() -> None:
    """gRPC's core would write its answer to memory that is gone."""
    async with serving() as served:
        await served.results.StoreResult(success("t"))
        askers = served.app._acceptance._askers
        assert not any(each.done() for each in askers)
        await until(lambda: not served.app._acceptance._calls)
    assert all(each.done() and each.exception() is None for each in askers)
