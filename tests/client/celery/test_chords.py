"""Chords against a real server, with a publisher that only writes down what it is given."""

from __future__ import annotations

import contextlib
import itertools
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import celery
import pytest
from celery.app.task import Context
from celery.exceptions import ChordError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kombu.exceptions import OperationalError

from resultd import testing
from resultd.celery import _chords, _finishing
from resultd.v1 import group_pb2

pytest.importorskip("resultd_server")


class KilledError(BaseException):
    """The process ends here: nothing after it runs."""


@dataclass
class Publisher:
    """Stands where Celery hands messages to the broker."""

    sent: list[tuple[str, Any]] = field(default_factory=list)
    #: What happens to the next ones instead, in order.
    refusals: list[BaseException] = field(default_factory=list)

    def __call__(self, producer: Any, name: str, message: Any, **_: Any) -> None:
        """Takes a message, as `app.amqp.send_task_message` does."""
        if self.refusals:
            raise self.refusals.pop(0)
        self.sent.append((message.headers["id"], message.body[0][0]))


def new_app(
    server: testing.Server, name: str, lease_s: float = 30.0, **more: Any
) -> tuple[Any, Publisher]:
    """An app whose broker is a list, and the list."""
    more["result_backend_transport_options"] = {"chord_lease": lease_s}
    app = celery.Celery(name, broker="memory://", backend=server.url, set_as_current=False)
    app.conf.update(more)
    publisher = Publisher()
    app.amqp.__dict__["send_task_message"] = publisher

    @app.task(name="body", shared=False)  # type: ignore[untyped-decorator]  # Celery has no types
    def body(values: Any) -> None:
        """Never run."""

    return app, publisher


@pytest.fixture(scope="module")
def server() -> Iterator[testing.Server]:
    """One server for all tests of this module."""
    with testing.Server(engine="memory") as running:
        yield running


@pytest.fixture
def name() -> str:
    """An app's name: whose chords those are."""
    return f"app-{uuid.uuid4()}"


@pytest.fixture
def app_and_sent(server: testing.Server, name: str) -> Iterator[tuple[Any, Publisher]]:
    """An app and what it published."""
    app, publisher = new_app(server, name)
    yield app, publisher
    app.close()


class Chord:
    """A chord whose parts are returned by the test, in whatever order it likes."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.id = str(uuid.uuid4())
        self.body = app.tasks["body"].s().set(task_id=str(uuid.uuid4()))
        app.backend.apply_chord((self.id, []), self.body)

    def request(self, name: str, index: int, **more: Any) -> Context:
        """What a worker knows of a part it runs."""
        body = dict(self.body)
        task_id = f"{self.id}-{name}"
        return Context(
            id=task_id, group=self.id, group_index=index, chord=body, task="part", **more
        )

    def part(self, name: str, index: int, **more: Any) -> None:
        """A part returns its name."""
        self.app.backend.mark_as_done(
            f"{self.id}-{name}", name, request=self.request(name, index, **more)
        )

    def failed_part(self, name: str, index: int) -> None:
        """A part fails."""
        self.app.backend.mark_as_failure(
            f"{self.id}-{name}", ValueError(name), request=self.request(name, index)
        )

    def add(self, name: str) -> None:
        """A part is added by one that runs."""
        self.app.backend.add_to_chord(self.id, self.app.AsyncResult(f"{self.id}-{name}"))

    def size(self, size: int) -> None:
        """How many parts the header has."""
        self.app.backend.set_chord_size(self.id, size)

    def group(self) -> group_pb2.GroupMeta:
        """What the server knows of it."""
        client = self.app.backend.client
        found: group_pb2.GroupMeta = client.run(client.operations.group(self.id))
        return found


#: A part whose result is stored, and one whose task ignores it.
KINDS = ("part", "ignored")


@dataclass(frozen=True)
class Step:
    """Something that happens to a chord. `after`: what has to have happened before it."""

    name: str
    kind: str
    index: int = 0
    after: str = ""


@st.composite
def programs(draw: st.DrawFn) -> tuple[int, list[Step]]:
    """A chord's steps in an order that can happen: repeats, additions, its size at any time."""
    size = draw(st.integers(1, 4))
    steps = [Step("size", "size")]
    if draw(st.booleans()):
        steps.append(Step("size", "size"))
    for index in range(size):
        name = f"p{index}"
        kind = draw(st.sampled_from(KINDS))
        after = ""
        if draw(st.integers(0, 3)) == 0:
            # Added while p runs: before p returns, which may be seen before or after its own.
            steps.append(Step(f"add-{name}", "add", index))
            steps += [Step(f"{name}+", "part", index, f"add-{name}")] * draw(st.integers(1, 2))
            after = f"add-{name}"
        steps += [Step(name, kind, index, after)] * draw(st.integers(1, 3))
    return size, in_order(draw(st.permutations(steps)))


def in_order(steps: list[Step]) -> list[Step]:
    """The steps, those put off that come before what they need."""
    done: list[Step] = []
    left = list(steps)
    while left:
        happened = {step.name for step in done}
        step = next(step for step in left if not step.after or step.after in happened)
        left.remove(step)
        done.append(step)
    return done


def play(chord: Chord, size: int, steps: list[Step]) -> None:
    """Has the steps happen."""
    for step in steps:
        if step.kind == "size":
            chord.size(size)
        elif step.kind == "add":
            chord.add(f"p{step.index}+")
        else:
            chord.part(step.name, step.index, ignore_result=step.kind == "ignored")


def expected(steps: list[Step]) -> list[str]:
    """The body's argument: by place in the header, what shares a place as it came."""
    names = dict.fromkeys(step.name for step in steps if step.kind in ("part", "ignored"))
    places = {step.name: step.index for step in steps}
    return sorted(names, key=lambda name: places[name])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(programs())
@example((1, [Step("p0", "part"), Step("size", "size")]))
@example((2, [Step("size", "size"), Step("p1", "ignored", 1), Step("p0", "part")]))
def test_whatever_the_order_the_body_is_published_once_with_all_parts(
    app_and_sent: tuple[Any, Publisher], program: tuple[int, list[Step]]
) -> None:
    """Parts, repeats, additions and the size in any order give one body, in header order."""
    app, publisher = app_and_sent
    publisher.sent.clear()
    size, steps = program
    chord = Chord(app)
    play(chord, size, steps)
    assert publisher.sent == [(chord.body.id, expected(steps))]
    assert chord.group().claim.state == group_pb2.CLAIM_STATE_DONE


def test_parts_that_do_not_come_with_the_claim_are_read_after_it(
    app_and_sent: tuple[Any, Publisher],
) -> None:
    """A claim brings about 1 MiB of parts; the body gets those beyond it too, in their order."""
    app, publisher = app_and_sent
    chord = Chord(app)
    names = [f"{number}" * 400_000 for number in range(6)]
    chord.size(len(names))
    for index in (3, 0, 5, 1, 4, 2):
        chord.app.backend.mark_as_done(
            f"{chord.id}-{index}", names[index], request=chord.request(str(index), index)
        )
    assert publisher.sent == [(chord.body.id, names)]


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(programs(), programs())
def test_a_chord_applied_again_runs_again(
    app_and_sent: tuple[Any, Publisher],
    first: tuple[int, list[Step]],
    second: tuple[int, list[Step]],
) -> None:
    """A frozen chord that is over and applied again publishes its body once more, whole."""
    app, publisher = app_and_sent
    publisher.sent.clear()
    chord = Chord(app)
    play(chord, *first)
    app.backend.store_result(chord.body.id, "ran", "SUCCESS")
    app.backend.apply_chord((chord.id, []), chord.body)
    play(chord, *second)
    assert [values for _, values in publisher.sent] == [expected(first[1]), expected(second[1])]


@pytest.mark.parametrize("order", [*itertools.permutations(["size", "good", "bad", "bad"])])
def test_a_failed_part_fails_the_body_whenever_it_comes(
    app_and_sent: tuple[Any, Publisher], order: tuple[str, ...]
) -> None:
    """A body whose part failed is never published and fails of a ChordError naming the part."""
    app, publisher = app_and_sent
    chord = Chord(app)
    for step in order:
        if step == "size":
            chord.size(2)
        elif step == "good":
            chord.part("good", 0)
        else:
            chord.failed_part("bad", 1)
    result = app.AsyncResult(chord.body.id)
    assert publisher.sent == []
    assert isinstance(result.result, ChordError)
    assert f"{chord.id}-bad" in str(result.result)
    assert chord.group().claim.state == group_pb2.CLAIM_STATE_DONE


# Claims.


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Complete chords are taken over as soon as they are noticed."""
    monkeypatch.setattr(_chords, "GRACE", 0.0)


def dies_publishing(app: Any, publisher: Publisher) -> Chord:
    """A chord of two parts whose claimant is no more."""
    publisher.refusals.append(KilledError())
    chord = Chord(app)
    chord.size(2)
    chord.part("b", 1)
    with contextlib.suppress(KilledError):
        chord.part("a", 0)
    assert publisher.refusals == []
    return chord


@pytest.mark.usefixtures("no_grace")
def test_a_chord_of_another_app_is_let_alone(server: testing.Server, name: str) -> None:
    """An app of another name is told of nothing to take over, and takes nothing over."""
    dead, publisher = new_app(server, name, 1)
    other, others = new_app(server, f"not-{name}")
    same, published = new_app(server, name)
    chord = dies_publishing(dead, publisher)
    wait_for_lease(chord)
    assert other.backend._chords.ask() is False
    other.backend.store_result("busy", 1, "SUCCESS")
    assert others.sent == []
    same.backend._chords.ask()
    assert published.sent == [(chord.body.id, ["a", "b"])]
    for app in (dead, other, same):
        app.close()


@pytest.mark.usefixtures("no_grace")
def test_a_live_claimants_chord_is_not_stolen(server: testing.Server, name: str) -> None:
    """While a claimant publishes, others of its app who look and store get nothing to do."""
    busy, published = new_app(server, name)

    class Slow(Publisher):
        def __call__(self, producer: Any, name: str, message: Any, **more: Any) -> None:
            for number in range(20):
                busy.backend._chords.ask()
                busy.backend.store_result(f"busy-{number}", number, "SUCCESS")
            super().__call__(producer, name, message, **more)

    live, _ = new_app(server, name)
    slow = Slow()
    live.amqp.__dict__["send_task_message"] = slow
    chord = Chord(live)
    chord.size(1)
    chord.part("a", 0)
    busy.backend._chords.notice([chord.id])
    assert (slow.sent, published.sent) == ([(chord.body.id, ["a"])], [])
    for app in (busy, live):
        app.close()


def wait_for_lease(chord: Chord) -> None:
    """Until the claim has run out on the server's clock."""
    client = chord.app.backend.client
    while not any(group.group_id == chord.id for group in client.list_groups(claimable=True)):
        pass


def test_a_chord_whose_lease_ran_out_needs_no_grace(server: testing.Server, name: str) -> None:
    """Whoever asks takes over at once what was claimed and left: its lease was its grace."""
    dead, publisher = new_app(server, name, 1)
    idle, published = new_app(server, name)
    chord = dies_publishing(dead, publisher)
    wait_for_lease(chord)
    idle.backend._chords.ask()
    assert published.sent == [(chord.body.id, ["a", "b"])]
    for app in (dead, idle):
        app.close()


def test_a_chord_nobody_claimed_is_left_to_its_last_part_for_a_while(
    server: testing.Server, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A complete chord that was never claimed is taken over when it is seen after the grace."""
    app, publisher = new_app(server, name)
    chord = Chord(app)
    chord.size(1)
    with app.backend._chords.returning():  # and ends before it hears the answer
        app.backend.store_result(f"{chord.id}-a", "a", "SUCCESS", request=chord.request("a", 0))
    assert app.backend._chords.ask() is True
    assert publisher.sent == []
    monkeypatch.setattr(_chords, "GRACE", 0.0)
    assert app.backend._chords.ask() is False
    assert publisher.sent == [(chord.body.id, ["a"])]
    app.close()


def test_a_body_that_a_worker_has_had_is_not_published_again(
    server: testing.Server, name: str
) -> None:
    """A claimant that died after publishing leaves only the word that it is done."""
    dead, publisher = new_app(server, name, 1)
    idle, published = new_app(server, name)
    chord = dies_publishing(dead, publisher)
    idle.backend.store_result(chord.body.id, "ran", "SUCCESS")
    wait_for_lease(chord)
    idle.backend._chords.ask()
    assert published.sent == []
    assert chord.group().claim.state == group_pb2.CLAIM_STATE_DONE
    for app in (dead, idle):
        app.close()


def test_a_word_of_the_application_is_not_taken_for_a_workers(
    server: testing.Server, name: str
) -> None:
    """A custom state of a body, stored by who publishes tasks, does not mean it was published."""
    dead, publisher = new_app(server, name, 1)
    idle, published = new_app(server, name)
    chord = dies_publishing(dead, publisher)
    idle.backend.store_result(chord.body.id, None, "SENT")
    wait_for_lease(chord)
    idle.backend._chords.ask()
    assert published.sent == [(chord.body.id, ["a", "b"])]
    for app in (dead, idle):
        app.close()


# The broker.


@pytest.mark.usefixtures("no_grace")
@pytest.mark.parametrize("error", [OperationalError("gone"), ConnectionResetError()])
def test_a_broker_that_is_away_does_not_fail_the_body(
    app_and_sent: tuple[Any, Publisher], error: Exception
) -> None:
    """A body the broker cannot be given now is published by whoever next looks for it."""
    app, publisher = app_and_sent
    publisher.refusals.append(error)
    chord = Chord(app)
    chord.size(1)
    chord.part("a", 0)
    assert publisher.sent == []
    assert app.AsyncResult(chord.body.id).state == "PENDING"
    app.backend._chords.ask()
    assert publisher.sent == [(chord.body.id, ["a"])]


def test_a_body_that_can_never_be_published_fails(app_and_sent: tuple[Any, Publisher]) -> None:
    """What is no matter of the connection fails the body, once, and says why."""
    app, publisher = app_and_sent
    publisher.refusals.append(TypeError("not JSON"))
    chord = Chord(app)
    chord.size(1)
    chord.part("a", 0)
    chord.part("a", 0)
    assert publisher.sent == []
    assert "not JSON" in str(app.AsyncResult(chord.body.id).result)


@pytest.mark.usefixtures("no_grace")
def test_a_chord_that_cannot_be_taken_over_does_not_harm_who_comes_by(
    server: testing.Server, name: str
) -> None:
    """An innocent result is stored whatever is wrong with the chord its reply names."""
    dead, publisher = new_app(server, name, 1)
    strange, _ = new_app(server, name, accept_content=["yaml"], result_accept_content=["json"])
    chord = dies_publishing(dead, publisher)
    wait_for_lease(chord)
    strange.backend.store_result("innocent", 1, "SUCCESS")
    assert strange.AsyncResult("innocent").get(timeout=5) == 1
    for app in (dead, strange):
        app.close()


def test_ignored_parts_are_forgotten_only_by_who_finished_the_chord(
    server: testing.Server, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claimant that lost its claim over reading leaves the parts to the one who has it."""
    late, _ = new_app(server, name, 1)
    chord = Chord(late)
    chord.size(1)
    monkeypatch.setattr(_finishing.Claim, "holds", lambda _: False)
    chord.part("a", 0, ignore_result=True)
    monkeypatch.undo()
    other, published = new_app(server, name)
    wait_for_lease(chord)
    other.backend._chords.ask()
    assert published.sent == [(chord.body.id, ["a"])]
    for app in (late, other):
        app.close()
