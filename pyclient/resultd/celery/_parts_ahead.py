"""What a chord's parts returned, read a little at a time before the chord is complete.

Whoever returns the last part has to have them all before the body can be published: of a thousand
parts that is most of the wait. A process that returned enough of a chord's parts to be likely to
return the last one has its reports bring along what others returned since, and the claim brings
only the rest. What succeeded stays as it is unless somebody forgets it: then it counts with what it
was when it was read. Of chords with other parts nothing is read ahead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resultd.v1 import group_service_pb2, result_service_pb2

if TYPE_CHECKING:
    from resultd.celery._records import Codec

# Of fewer parts nothing is gained.
PARTS_MIN = 64
# Each process that reads ahead reads all: about so many of them may begin to.
PROCESSES_MAX = 8
# Each so many reports of a process one brings along what others returned since.
EACH = 8
# Of one chord and of all that a process is at, about: bytes of memory, and their number.
KEPT_BYTES_MAX = 4 * 1024 * 1024
ALL_KEPT_BYTES_MAX = 8 * 1024 * 1024
CHORDS_MAX = 32
# What a part takes beside its value, and of that a list or an object, and what stands in it.
PART_BYTES = 256
NESTED_BYTES = 64
ELEMENT_BYTES = 56


class PartsAhead:
    """The parts of the chords that a process is at. Takes no lock: who forks may do so any time."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        # The least recently returned to first.
        self._chords: dict[str, ChordAhead] = {}

    def of(self, group_id: str) -> ChordAhead:
        """What there is of a chord that a part is returned to."""
        chord = self._chords.pop(group_id, None) or ChordAhead(self._codec)
        self._chords[group_id] = chord
        kept_bytes, chords = 0, list(self._chords.items())
        for number, (other, each) in enumerate(reversed(chords)):
            kept_bytes += each.kept_bytes
            if number and (number >= CHORDS_MAX or kept_bytes > ALL_KEPT_BYTES_MAX):
                self.drop(other)
        return chord

    def drop(self, group_id: str) -> None:
        """Keep nothing of a chord that is over."""
        self._chords.pop(group_id, None)


class ChordAhead:
    """The parts of one chord that are known here."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        # Of each part, by its index.
        self._task_ids: dict[int, str] = {}
        self._values: dict[int, Any] = {}
        #: What is kept of them, in bytes.
        self.kept_bytes = 0
        self._after = b""
        self._over = False
        # Parts returned here, what their values took, and how far the chord was then.
        self._own = self._own_bytes = 0
        self._done = self._expected = 0

    def ask_with(self, store: result_service_pb2.StoreResultRequest) -> None:
        """Have a part's report bring others along, if that pays."""
        self._own += 1
        self._own_bytes += _taken_bytes(store.meta.value.data)
        if not self._pays():
            self._drop()
        elif not self._over:
            store.claim.members_after = self._after
            store.claim.members_ahead = self._own % EACH == 0

    def _pays(self) -> bool:
        if self._expected < PARTS_MIN:
            return False
        # Who has begun goes on a while longer: it would have to begin anew.
        processes = self._done / self._own
        if processes > (2 * PROCESSES_MAX if self._values else PROCESSES_MAX):
            return False
        return self._own_bytes / self._own * self._expected <= KEPT_BYTES_MAX

    def hear(self, answer: result_service_pb2.StoreResultResponse) -> None:
        """Take from the answer to that report what it brought."""
        self._done, self._expected = answer.group_done, answer.group_expected_total
        if answer.HasField("members_ahead") and not self._over:
            self._keep(answer.members_ahead)

    def _keep(self, members: group_service_pb2.ClaimedMembers) -> None:
        records = [event.task for event in members.events]
        values = self._codec.values(records)
        if not members.continued:  # these are the first: what there is is an earlier run's
            self._drop()
        indexes = [event.index for event in members.events]
        self.kept_bytes += sum(_taken_bytes(record.value.data) for record in records)
        if values is None or self.kept_bytes > KEPT_BYTES_MAX:
            self._over = True
            self._drop()
        else:
            self._after = members.after
            self._task_ids.update(zip(indexes, (record.task_id for record in records), strict=True))
            self._values.update(zip(indexes, values, strict=True))

    def _drop(self) -> None:
        self._task_ids.clear()
        self._values.clear()
        self.kept_bytes = 0
        self._after = b""

    def with_rest(
        self, members: group_service_pb2.ClaimedMembers, count: int
    ) -> tuple[dict[int, str], dict[int, Any]]:
        """The tasks of all `count` parts and what they returned, by index.

        Nothing unless they are all there with `members`, which came with the claim: answers of
        two threads may have crossed, or one have been cut off.
        """
        if members.continued and not members.after and not self._over:
            self._keep(members)
        task_ids, values = dict(self._task_ids), dict(self._values)
        whole = len(values) == count and task_ids.keys() == values.keys()
        return (task_ids, values) if whole else ({}, {})


def _taken_bytes(text: bytes) -> int:
    """What a part takes in memory, about: JSON may be dense, `[{},{}]` takes 24 times as much."""
    nested = text.count(b"[") + text.count(b"{")
    return PART_BYTES + len(text) + NESTED_BYTES * nested + ELEMENT_BYTES * text.count(b",")
