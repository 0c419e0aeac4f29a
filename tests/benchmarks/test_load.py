"""Loaded stores are what they say they are."""

from __future__ import annotations

import itertools
from pathlib import Path

import grpc
import pytest

from resultd.v1 import group_service_pb2, state_pb2
from resultd.v1 import result_service_pb2 as pb
from tests.benchmarks import load, stores
from tests.benchmarks.processes import resultd
from tests.benchmarks.stores import Kind, Wanted
from tests.benchmarks.stubs import groups, results


class _BrokenOff(Exception):
    pass


async def test_a_load_that_was_broken_off_goes_on_and_leaves_nothing_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every record is there, those of the group in the group, which is complete."""
    monkeypatch.setattr(load, "_BATCH", 100)
    monkeypatch.setattr(load, "_SHARE", 1_050)
    wanted = Wanted(1_234)

    def break_off(_: str) -> None:
        raise _BrokenOff

    with pytest.raises(_BrokenOff):
        await load.build(tmp_path, wanted, break_off)
    assert stores.loaded(tmp_path, wanted) == 1_050
    assert stores.find(tmp_path, wanted) is None

    data = await load.build(tmp_path, wanted)
    assert stores.find(tmp_path, wanted) == data
    async with resultd(data) as server, grpc.aio.insecure_channel(server.address) as channel:
        asked = pb.BatchGetResultsRequest(task_ids=[wanted.task_id(n) for n in range(1_234)])
        answer = await results(channel).BatchGetResults(asked)
        assert [meta.existence for meta in answer.metas] == [state_pb2.EXISTENCE_KNOWN] * 1_234
        about = group_service_pb2.GetGroupRequest(group_id=stores.GROUP)
        group = (await groups(channel).GetGroup(about)).group
    assert group.counts.complete
    assert group.counts.done == 1_234
    assert group.expire_time.seconds - group.updated_time.seconds == stores.KEPT.seconds


@pytest.mark.parametrize("kind", Kind)
def test_ids_are_in_order_and_all_over_the_place(kind: Kind) -> None:
    """Ids rise with their number, evenly, so that a new random id falls between any two."""
    wanted = Wanted(1_000, kind)
    ids = [wanted.task_id(number) for number in range(1_000)]
    assert ids == sorted(set(ids))
    firsts = [int(task_id[:4], 16) for task_id in ids]
    assert max(after - before for before, after in itertools.pairwise(firsts)) <= 67
    assert {len(task_id) for task_id in ids} == {36}


def test_a_store_of_single_records_has_a_group_spread_over_it() -> None:
    """One record in so many is a member, as many as the group is to have."""
    wanted = Wanted(25_000)
    members = [n for n in range(25_000) if wanted.report(n).meta.group_id]
    assert len(members) == wanted.members == 10_000
    assert members[1] - members[0] == 2
