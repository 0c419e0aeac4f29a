"""How calls are taken up: with gRPC's core in a test's hands, and on a server."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import operator
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # gRPC's own insides, untyped
from grpc_health.v1 import health_pb2, health_pb2_grpc

from resultd.v1 import group_service_pb2 as group_pb
from resultd.v1 import result_service_pb2 as pb
from resultd_server import acceptance, app, limits, pressure
from resultd_server.acceptance import QUESTIONS, Acceptance, Method
from resultd_server.interceptors.limits import CallBound
from tests.support.in_process import Served, serving, until
from tests.support.refusals import taken_apart
from tests.support.reports import success

STORE = "/resultd.v1.ResultService/StoreResult"


async def serve(request: bytes, _: object) -> bytes:
    """A handler."""
    return request


async def refuse(_: object, __: object) -> bytes:
    """A handler that has no request."""
    return b"full"


async def late(_: object, __: object) -> bytes:
    """Another."""
    return b"late"


class Bound:
    """Full when it is said to be."""

    is_full = False


BOUND = Bound()
METHOD = Method(
    "some.Service",
    "Some",
    grpc.unary_unary_rpc_method_handler(serve),
    lambda: BOUND.is_full,
    grpc.stream_unary_rpc_method_handler(refuse),
    grpc.stream_unary_rpc_method_handler(late),
)


class Core:
    """gRPC's part: answers questions when it is told to."""

    def __init__(self) -> None:
        self.questions: list[asyncio.Future[object]] = []
        self.begun: list[tuple[object, object]] = []
        self.registered: dict[str, Any] = {}
        self.running = True
        self.ours: frozenset[bytes] = frozenset()
        self.requests = asyncio.Event()
        self.requests.set()
        self.served: list[object] = []
        self.ended: list[type[BaseException]] = []
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

    async def receive(self, state: object, _: object) -> bytes:
        """As `_receive_message`; requests are whole when `requests` is set."""
        self.begun.append((state, METHOD.serve))
        await self.requests.wait()
        return b"request"

    async def finish(self, state: object, handler: object, request: bytes, *_: object) -> None:
        """As `_finish_handler_with_unary_response`."""
        assert (handler, request) == (serve, b"request")
        self.served.append(state)

    async def refuse(self, rpc: object, state: object, _: object) -> None:
        """As `_handle_stream_unary_rpc`, of a handler that refuses."""
        self.begun.append((state, rpc))
        raise grpc.aio.AbortError

    async def schedule(self, work: Any, *_: object) -> None:
        """As `_schedule_rpc_coro`."""
        try:
            await work
        except (grpc.aio.AbortError, asyncio.CancelledError) as error:
            self.ended.append(type(error))


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Core:
    """In gRPC's place."""
    core = Core()
    monkeypatch.setattr(cygrpc, "_receive_message", core.receive)
    monkeypatch.setattr(cygrpc, "_finish_handler_with_unary_response", core.finish)
    monkeypatch.setattr(cygrpc, "_handle_stream_unary_rpc", core.refuse)
    monkeypatch.setattr(cygrpc, "_schedule_rpc_coro", core.schedule)
    monkeypatch.setattr(cygrpc, "_ServicerContext", lambda *_: None)
    return core


async def started(core: Core, on_failure: Callable[[BaseException], None] = print) -> Acceptance:
    """An acceptance of one method."""
    found = Acceptance(core, [METHOD], on_failure)  # type: ignore[arg-type]  # what it needs
    found.start()
    await asyncio.sleep(0)
    return found


async def test_calls_that_come_together_begin_together(core: Core) -> None:
    """As many as questions are open begin in the same turns of the loop, not one after another."""
    taken = await started(core)
    assert core.ours == {METHOD.path.encode()}
    assert core.registered == {"some.Service": {"Some": METHOD.serve}}
    assert len(core.questions) == QUESTIONS
    core.answer(QUESTIONS)
    for _ in range(3):  # the question, its call, and what that schedules
        await asyncio.sleep(0)
    assert core.begun == [(number, METHOD.serve) for number in range(QUESTIONS)]
    assert core.served == [*range(QUESTIONS)]
    assert len(core.questions) == QUESTIONS
    core.running = False
    core.fail()
    await taken.ended()


async def test_a_call_is_refused_unread_while_there_is_no_room(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What there is room for when a call comes decides, not what there was at the question."""
    taken = await started(core)
    for full in (True, False):
        monkeypatch.setattr(BOUND, "is_full", full)
        core.answer(1)
        for _ in range(3):
            await asyncio.sleep(0)
    assert [rpc for _, rpc in core.begun] == [METHOD.refuse, METHOD.serve]
    core.running = False
    core.fail()
    await taken.ended()


async def test_a_question_that_fails_is_asked_again_while_the_server_runs(core: Core) -> None:
    """A call may be over before it began; and the end of the server ends the asking."""
    taken = await started(core)
    core.fail()
    await asyncio.sleep(0)
    assert len(core.questions) == QUESTIONS
    core.running = False
    core.fail()
    await taken.ended()
    assert core.questions == []


async def on_their_way(core: Core, calls: int) -> Acceptance:
    """An acceptance of calls whose requests are not whole."""
    core.requests.clear()
    taken = await started(core)
    core.answer(calls)
    await until(lambda: len(taken._arriving) == calls)
    return taken


async def turns() -> None:
    """Everything that can go on does."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("after_s", "ends"),
    [
        (limits.REQUEST_S - 1, False),
        (limits.REQUEST_S, False),
        (limits.REQUEST_S + 1, True),
        (10 * limits.REQUEST_S, True),
    ],
)
async def test_a_request_has_so_long_to_come(core: Core, after_s: float, ends: bool) -> None:
    """Until L s after its call was taken up; then the call is ended, and not what came since."""
    taken = await on_their_way(core, 2)
    older, younger = taken._arriving
    taken._arriving[younger] += 10 * limits.REQUEST_S
    taken.end_late(taken._arriving[older] + after_s)
    assert taken._ending == ({older} if ends else set())
    await turns()
    core.requests.set()
    await turns()
    assert core.served == ([1] if ends else [0, 1])
    assert core.ended == ([grpc.aio.AbortError] if ends else [])
    assert not taken._arriving
    assert not taken._ending


async def test_where_memory_is_short_calls_that_keep_waiting_are_ended(core: Core) -> None:
    """Those on their way at two looks: once, and none that came whole or later."""
    taken = await on_their_way(core, 2)
    assert taken.relieve() == 0
    core.answer(1)
    await until(lambda: len(taken._arriving) == 3)
    assert taken.relieve() == 2
    assert taken._ending == {*taken._arriving} - {[*taken._arriving][2]}
    await turns()
    assert [rpc for state, rpc in core.begun if state in (0, 1)].count(METHOD.late) == 2
    assert taken.relieve() == 1
    assert taken.relieve() == 0, "it is on its way out"
    core.requests.set()
    await turns()
    assert core.served == []
    assert core.ended == [grpc.aio.AbortError] * 3


async def test_a_request_that_is_there_in_the_same_turn_is_not_served(core: Core) -> None:
    """Its call is being ended: one answer is enough."""
    taken = await on_their_way(core, 1)
    taken.relieve()
    taken.relieve()
    core.requests.set()
    await turns()
    assert core.served == []
    assert core.ended == [grpc.aio.AbortError]


async def test_a_caller_that_goes_away_meanwhile_is_let_go(core: Core) -> None:
    """What gRPC cancels ends as cancelled."""
    taken = await on_their_way(core, 1)
    [call] = taken._calls
    call.cancel()
    await turns()
    assert core.ended == [asyncio.CancelledError]
    assert not taken._arriving


async def test_requests_that_take_too_long_are_looked_for(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All the time."""
    monkeypatch.setattr(acceptance, "_LOOK_S", 0.01)
    monkeypatch.setattr(limits, "REQUEST_S", 0.1)
    taken = await on_their_way(core, 1)
    watching = asyncio.create_task(taken.watch())
    await until(lambda: core.ended == [grpc.aio.AbortError])
    watching.cancel()


async def test_a_question_that_ends_otherwise_is_told(core: Core) -> None:
    """A method nobody asks for any more is deaf: the server must not go on as if it were not."""
    errors: list[BaseException] = []
    taken = await started(core, errors.append)
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


HIDDEN = [name for _, name in acceptance._TAKE] + ["_ServicerContext", "_RequestCallError"]


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
async def full(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    """A server with as many calls under way as it takes."""
    monkeypatch.setattr(app, "CallBound", lambda: CallBound(0))
    async with serving() as served:
        yield served


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


@pytest.fixture
async def unlooked(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    """A server that does not look at its memory: it is short when a test says so."""
    monkeypatch.setattr(pressure, "EVERY_S", 3_600.0)
    async with serving() as served:
        yield served


async def test_nobody_new_is_let_in_while_memory_is_short(unlooked: Served) -> None:
    """Calls and streams are OVERLOADED; health is told all the same."""
    served = unlooked
    served.app.pressure.short = True
    for call in (
        served.results.StoreResult(success("t")),
        served.results.WaitFor(pb.WaitForRequest(task_ids=["t"])).read(),
        served.results.Watch().read(),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert taken_apart(caught.value).reason == "OVERLOADED"
    health: Any = health_pb2_grpc.HealthStub(served.channel)  # its types know sync channels only
    said = await health.Check(health_pb2.HealthCheckRequest())
    assert said.status == health_pb2.HealthCheckResponse.SERVING


@contextlib.asynccontextmanager
async def nothing_left(served: Served) -> AsyncIterator[None]:
    """Of the calls made inside nothing is there once they have ended, without a collection.

    Not their state, which holds all else, nor a stream's source, nor what gRPC looks for a handler
    with: of that it would leave five objects a call, the metadata among them.
    """
    names = ("RPCState", "WaitForSource", "WatchSource", "_HandlerCallDetails")

    def there() -> list[int]:
        found = [type(each).__name__ for each in gc.get_objects()]
        return [found.count(name) for name in names]

    gc.collect()
    before = there()
    gc.disable()
    try:
        yield
        await served.idle()
        await until(lambda: not served.app._acceptance._calls)
        # Fewer where a call from before was about to end; each of those inside would leave one.
        await until(lambda: all(map(operator.le, there(), before)))
    finally:
        gc.enable()


async def test_a_call_leaves_nothing_to_the_garbage_collector(served: Served) -> None:
    """Neither unary ones nor streams that end."""
    async with nothing_left(served):
        for number in range(20):
            await served.results.StoreResult(success(f"t{number}"))
            await served.results.GetResult(pb.GetResultRequest(task_id=f"t{number}"))
            async for _ in served.results.WaitFor(pb.WaitForRequest(task_ids=[f"t{number}"])):
                continue


async def test_a_stream_that_is_cancelled_leaves_nothing_either(served: Served) -> None:
    """Nor what it waited for, however much that was."""
    async with nothing_left(served):
        for _ in range(5):
            watch = served.results.Watch()
            await watch.write(pb.WatchRequest(add_task_ids=["t"], sequence=1))
            await watch.read()
            watch.cancel()


async def test_a_call_that_waited_for_room_leaves_nothing(unlooked: Served) -> None:
    """Many that are answered with much, few at a time: gRPC said of each that it was taken."""
    served = unlooked
    group = group_pb.CreateGroupRequest(group_id="g")
    group.continuation.data = bytes(500_000)
    await served.groups.CreateGroup(group)

    async def ask(number: int) -> int:
        asked = group_pb.AddToTotalRequest(group_id="g", delta=1, request_id=str(number))
        return (await served.groups.AddToTotal(asked)).ByteSize()

    async with nothing_left(served):
        assert min(await asyncio.gather(*map(ask, range(20)))) > 500_000


async def test_a_refused_call_is_gone_with_its_request(unlooked: Served) -> None:
    """Large requests that are refused would else stay by the thousand."""

    async def refused(call: Awaitable[object]) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        return taken_apart(caught.value).reason

    served = unlooked
    results, acceptance = served.results, served.app._acceptance
    store: Any = served.channel.stream_unary(STORE)
    async with nothing_left(served):
        for number in range(QUESTIONS + 2):
            empty = pb.StoreResultRequest()
            assert await refused(results.StoreResult(empty)) == "FIELD_INVALID"
            assert await refused(results.WaitFor(pb.WaitForRequest()).read()) == "FIELD_INVALID"
            served.app.pressure.short = True
            assert await refused(results.StoreResult(success(f"t{number}"))) == "OVERLOADED"
            served.app.pressure.short = False
            half = store(never())
            await until(lambda: len(acceptance._arriving) == 1)
            acceptance.relieve()
            acceptance.relieve()
            assert await refused(half) == "OVERLOADED"


async def never() -> AsyncIterator[bytes]:
    """A request that does not come."""
    await asyncio.Event().wait()
    yield b""


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
