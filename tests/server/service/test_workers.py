"""WorkerService over a socket: cancellation reaches the worker, whenever it listens."""

from __future__ import annotations

import grpc
import pytest

from resultd.v1 import state_pb2, stream_pb2
from resultd.v1 import worker_service_pb2 as pb
from tests.support import reports
from tests.support.frames import END, HEARTBEAT, SYNCED, Frames, control, seconds
from tests.support.in_process import Served
from tests.support.refusals import taken_apart


async def revoke(served: Served, *task_ids: str, **how: object) -> pb.RevokeTasksResponse:
    """A wish to stop."""
    return await served.workers.RevokeTasks(pb.RevokeTasksRequest(task_ids=task_ids, **how))  # type: ignore[arg-type]  # the request's own fields


async def running(served: Served, *task_ids: str, sequence: int = 1) -> Frames:
    """A worker that runs tasks and listens."""
    for task_id in task_ids:
        await served.results.StoreResult(reports.state(task_id, state_pb2.STATE_STARTED))
    stream = Frames(served.workers.WatchRevocations())
    await stream.call.write(pb.WatchRevocationsRequest(add_task_ids=task_ids, sequence=sequence))
    return stream


def told(frames: list[pb.WatchRevocationsResponse]) -> list[str]:
    """Which tasks are to stop."""
    return [wish.task_id for frame in frames for wish in frame.revocations]


async def test_a_worker_that_listens_is_told(served: Served) -> None:
    """A revocation reaches the stream that runs the task, with signal and reason."""
    stream = await running(served, "a", "b")
    assert told(await stream.until(SYNCED)) == []
    answer = await revoke(served, "a", "elsewhere", terminate=True, signal="SIGKILL", reason="no")
    assert list(answer.requested_task_ids) == ["a"]
    assert list(answer.revoked_task_ids) == ["elsewhere"]
    [wish] = (await stream.next()).revocations
    assert (wish.task_id, wish.terminate, wish.signal, wish.reason) == ("a", True, "SIGKILL", "no")
    assert wish.create_time.seconds > 0
    stream.call.cancel()
    await served.idle()


async def test_a_worker_that_comes_later_is_told_first_thing(served: Served) -> None:
    """What was asked for before a worker listened comes before its SYNCED."""
    await served.results.StoreResult(reports.state("a", state_pb2.STATE_STARTED))
    await revoke(served, "a")
    stream = await running(served, "a")
    assert told(await stream.until(SYNCED)) == ["a"]


async def test_what_became_of_each_is_answered_by_kind(served: Served) -> None:
    """Not begun: REVOKED at once. Begun: the worker must act. Terminal: too late."""
    await served.results.StoreResult(reports.success("done"))
    await served.results.StoreResult(reports.state("begun", state_pb2.STATE_STARTED))
    answer = await revoke(served, "done", "begun", "new", "new")
    assert list(answer.terminal_task_ids) == ["done"]
    assert list(answer.requested_task_ids) == ["begun"]
    assert list(answer.revoked_task_ids) == ["new"]
    stored = await served.results.StoreResult(reports.state("begun", state_pb2.STATE_PROGRESS))
    assert stored.cancel_requested


async def test_what_a_worker_runs_no_longer_it_is_not_told(served: Served) -> None:
    """A removed task is not told of; many are told over several frames, each once."""
    stream = await running(served, *(f"t{n}" for n in range(100)))
    await stream.until(SYNCED)
    await stream.call.write(pb.WatchRevocationsRequest(remove_task_ids=["t0"], sequence=2))
    await stream.until(SYNCED)
    await revoke(served, *(f"t{n}" for n in range(100)))
    await stream.call.write(pb.WatchRevocationsRequest(sequence=3))
    assert sorted(told(await stream.until(SYNCED))) == sorted(f"t{n}" for n in range(1, 100))


async def test_a_quiet_stream_beats_and_ends_when_it_is_closed(served: Served) -> None:
    """Heartbeats as asked in the first request; half-closed with nothing left it is COMPLETE."""
    stream = Frames(served.workers.WatchRevocations())
    await stream.call.write(pb.WatchRevocationsRequest(add_task_ids=["a"], heartbeat=seconds(1)))
    await stream.until(HEARTBEAT)
    await stream.call.write(pb.WatchRevocationsRequest(remove_task_ids=["a"]))
    await stream.call.done_writing()
    assert control((await stream.rest())[-1]) == (END, stream_pb2.END_REASON_COMPLETE)


async def test_a_worker_runs_at_most_100_000_tasks_on_a_stream(served: Served) -> None:
    """The 100,001st running task of a stream is refused."""
    stream = Frames(served.workers.WatchRevocations())
    for start in range(0, 110_000, 10_000):
        task_ids = [f"t{n}" for n in range(start, start + 10_000)]
        await stream.call.write(pb.WatchRevocationsRequest(add_task_ids=task_ids))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.rest()
    assert taken_apart(caught.value).reason == "LIMIT_EXCEEDED"
    await served.idle()
