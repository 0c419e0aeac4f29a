"""Operations and the shells that drive them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from resultd._effects import (
    Effect,
    Emit,
    Op,
    Sleep,
    each,
    iterate,
    iterate_async,
    run,
    run_async,
    spread,
)


def doubling(notes: list[str]) -> Op[float]:
    """Sleep, and give twice what the sleep gave."""
    try:
        slept: float = yield Sleep(21.0)
        return 2 * slept
    finally:
        notes.append("clean")


def counting(notes: list[str], upto: int = 3) -> Op[None]:
    """Emit numbers, with a sleep between."""
    try:
        for number in range(upto):
            try:
                yield Sleep(number)
            except KeyError:
                yield Emit("caught")
            yield Emit(number)
    finally:
        notes.append("clean")


def seconds(effect: Effect) -> float:
    """Do a sleep by saying how long it was."""
    assert isinstance(effect, Sleep)
    return effect.seconds


def refusing(error: BaseException) -> Callable[[Effect], Any]:
    """A shell that fails."""

    def handle(_: Effect) -> Any:
        raise error

    return handle


async def a_seconds(effect: Effect) -> float:
    """The same, awaited."""
    await asyncio.sleep(0)
    return seconds(effect)


def test_outcomes_and_values_pass_through() -> None:
    """What the shell did is sent back, what the operation returns is given."""
    notes: list[str] = []
    assert run(doubling(notes), seconds) == 42.0
    assert list(iterate(counting(notes), seconds)) == [0, 1, 2]
    assert notes == ["clean", "clean"]


async def test_the_same_operations_run_on_a_loop() -> None:
    """With the same outcomes."""
    notes: list[str] = []
    assert await run_async(doubling(notes), a_seconds) == 42.0
    assert [value async for value in iterate_async(counting(notes), a_seconds)] == [0, 1, 2]
    assert notes == ["clean", "clean"]


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt(), asyncio.CancelledError()])
def test_what_the_shell_raises_is_raised_in_the_operation(error: BaseException) -> None:
    """It may catch it; whatever it does, it cleans up; what it does not catch comes out."""
    notes: list[str] = []
    with pytest.raises(type(error)):
        run(doubling(notes), refusing(error))
    values = iterate(counting(notes, 1), refusing(error))
    if isinstance(error, KeyError):
        assert list(values) == ["caught", 0]
    else:
        with pytest.raises(type(error)):
            next(values)
    assert notes == ["clean", "clean"]


async def test_an_async_shell_raises_into_the_operation_too() -> None:
    """Cancellation is one of those."""
    notes: list[str] = []

    async def never(_: Effect) -> None:
        await asyncio.sleep(60)

    task = asyncio.create_task(run_async(doubling(notes), never))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async def refuse(_: Effect) -> None:
        raise KeyError

    values = [value async for value in iterate_async(counting(notes, 1), refuse)]
    assert values == ["caught", 0]
    assert notes == ["clean", "clean"]


async def test_an_iteration_that_is_left_is_cleaned_up() -> None:
    """By closing it, in both worlds."""
    notes: list[str] = []
    values = iterate(counting(notes), seconds)
    assert next(values) == 0
    values.close()  # type: ignore[attr-defined]  # it is a generator
    async_values = iterate_async(counting(notes), a_seconds)
    assert await anext(async_values) == 0
    await async_values.aclose()  # type: ignore[attr-defined]  # as above
    assert notes == ["clean", "clean"]


def test_emitted_values_can_be_used_inside_another_operation() -> None:
    """Effects pass through, errors too, and the inner one is cleaned up."""
    notes: list[str] = []
    got: list[Any] = []
    run(each(counting(notes), got.append), seconds)
    assert got == [0, 1, 2]
    got.clear()
    run(each(counting(notes, 1), got.append), refusing(KeyError()))
    assert got == ["caught", 0]

    def stop(_: Any) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        run(each(counting(notes), stop), seconds)
    assert notes == ["clean"] * 3


def test_emitted_values_become_any_number_on_their_way() -> None:
    """What else the operation asks for, and what comes of it, passes through."""
    notes: list[str] = []
    assert list(iterate(spread(counting(notes), lambda n: [n] * n), seconds)) == [1, 2, 2]
    assert notes == ["clean"]
    with pytest.raises(OSError, match="x"):
        list(iterate(spread(counting(notes), list), refusing(OSError("x"))))
    caught = spread(counting(notes, 1), lambda value: [value] * 2)
    assert list(iterate(caught, refusing(KeyError()))) == ["caught", "caught", 0, 0]
