"""Our result classes beside the installed Celery's: every public name, every signature.

What differs on purpose stands in a table with its reason. A difference that is not listed
fails, and so does an entry that no longer is a difference.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest

import resultd
from resultd import results, states

celery_result = pytest.importorskip("celery.result", reason="compares with an installed Celery")
celery_states = pytest.importorskip("celery.states")

SPECIAL = (
    "__bool__",
    "__class_getitem__",
    "__copy__",
    "__eq__",
    "__getitem__",
    "__hash__",
    "__iter__",
    "__len__",
    "__reduce__",
    "__repr__",
    "__str__",
)

_SEED = "an addition that clashes with nothing of Celery's"

#: Names we have and Celery has not.
ADDED: dict[str, str] = {
    "AsyncResult.on_ready": "an attribute made per instance in Celery, a property here",
    "AsyncResult.progress": "how far a task has come is a field of its own here",
    "AsyncResult.retry": _SEED,
    "AsyncResult.return_value": _SEED,
    "EagerResult.on_ready": "as AsyncResult",
    "EagerResult.progress": "as AsyncResult",
    "EagerResult.retry": _SEED,
    "EagerResult.return_value": _SEED,
    "GroupResult.iterate": "Celery dropped it in 5.0; yields values as they complete",
    "GroupResult.on_ready": "as AsyncResult",
    "ResultSet.iterate": "as GroupResult",
    "ResultSet.on_ready": "as AsyncResult",
    "states.PROGRESS": "the custom state that everybody uses",
}

#: Signatures that are not the same.
OTHER: dict[str, str] = {}

#: Values that are not the same.
OTHER_VALUES: dict[str, str] = {
    "AsyncResult.TimeoutError": "ours is the builtin TimeoutError too",
    "EagerResult.TimeoutError": "as AsyncResult",
}

#: Behaviour that is not the same, where names and signatures cannot show it.
BEHAVIOUR: dict[str, str] = {
    "AsyncResult.ready": "True of IGNORED, which is terminal here; Celery waits for ever",
    "AsyncResult.get": (
        "None for IGNORED; the callback is called for cached results without propagate too; "
        "timeouts are exact; after forget() it waits, as Celery's polling backends do"
    ),
    "AsyncResult.then": "fires by itself; in Celery only while somebody drains events",
    "AsyncResult.parent": "found through the record's parent_id where none was given",
    "AsyncResult.revoke_by_stamped_headers": "raises: stamps are known to the broker only",
    "ResultSet.join": "takes on_message, which Celery refuses",
    "ResultSet.iter_native": "yields nothing for an empty set, where redis raises RuntimeError",
    "ResultSet.join_native": "a result that stands twice in the set has its value twice",
    "GroupResult.save": "nested groups are kept as groups of their own",
}

CLASSES = ("AsyncResult", "ResultSet", "GroupResult", "EagerResult")


def public(cls: Any) -> set[str]:
    """Names that are somebody's to use."""
    return {name for name in dir(cls) if not name.startswith("_") or name in SPECIAL}


# As Celery has them: taken before any test calls `resultd.celery.install`, which adds to them.
THEIRS = {name: public(getattr(celery_result, name)) for name in CLASSES}


def pairs() -> Iterator[tuple[str, str]]:
    """Each class with each name of Celery's."""
    for name, members in THEIRS.items():
        for member in sorted(members):
            yield name, member


def shape(function: Any) -> list[tuple[str, str, Any]]:
    """A signature without annotations."""
    return [
        (p.name, p.kind.name, p.default) for p in inspect.signature(function).parameters.values()
    ]


@pytest.mark.parametrize(("cls", "member"), [*pairs()])
def test_every_member_of_celery_is_here_with_its_signature(cls: str, member: str) -> None:
    """Same name, same parameters in the same order with the same defaults; or listed."""
    theirs = inspect.getattr_static(getattr(celery_result, cls), member)
    ours_of = getattr(results, cls)
    assert hasattr(ours_of, member), f"{cls}.{member} is missing"
    key = f"{cls}.{member}"
    if member in SPECIAL or not callable(getattr(getattr(celery_result, cls), member)):
        return
    if isinstance(theirs, type):
        assert key in OTHER_VALUES
        return
    same = shape(getattr(ours_of, member)) == shape(getattr(getattr(celery_result, cls), member))
    assert same == (key not in OTHER), f"{key}: listed and not a difference, or the reverse"


@pytest.mark.parametrize("cls", CLASSES)
def test_constructors_take_the_same(cls: str) -> None:
    """By position and by name."""
    assert shape(getattr(results, cls)) == shape(getattr(celery_result, cls))


@pytest.mark.parametrize("cls", CLASSES)
def test_hashes_are_where_celery_has_them(cls: str) -> None:
    """A ResultSet has none."""
    ours, theirs = getattr(results, cls), getattr(celery_result, cls)
    assert (ours.__hash__ is None) == (theirs.__hash__ is None)


def test_what_is_added_is_listed_and_nothing_else() -> None:
    """The table of additions is the difference."""
    added = {
        f"{cls}.{member}"
        for cls in CLASSES
        for member in public(getattr(results, cls)) - THEIRS[cls]
        if not member.startswith("__")
    }
    ours = {name for name in vars(states) if name.isupper()}
    added |= {f"states.{name}" for name in ours if not hasattr(celery_states, name)}
    assert added == set(ADDED)


@pytest.mark.parametrize("name", sorted(n for n in dir(celery_states) if not n.startswith("_")))
def test_states_are_celerys(name: str) -> None:
    """Constants, sets, precedence and the class of states."""
    theirs, ours = getattr(celery_states, name), getattr(states, name)
    if inspect.isfunction(theirs):
        assert shape(ours) == shape(theirs)
    elif not isinstance(theirs, type):
        assert ours == theirs


@pytest.mark.parametrize("one", [*celery_states.PRECEDENCE, "CUSTOM"])
@pytest.mark.parametrize("other", [*celery_states.PRECEDENCE, "CUSTOM"])
def test_states_compare_as_celerys(one: str | None, other: str | None) -> None:
    """For each pair, all six comparisons."""
    if one is None or other is None:
        return
    ours = (states.state(one), states.state(other))
    theirs = (celery_states.state(one), celery_states.state(other))
    for op in ("__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__"):
        assert getattr(ours[0], op)(ours[1]) == getattr(theirs[0], op)(theirs[1])


def test_module_functions_take_the_same() -> None:
    """`result_from_tuple`, the guards, and the base."""
    assert shape(resultd.result_from_tuple) == shape(celery_result.result_from_tuple)
    for name in ("allow_join_result", "denied_join_result", "assert_will_not_block"):
        assert shape(getattr(results, name)) == shape(getattr(celery_result, name))
    for name in CLASSES:
        assert issubclass(getattr(results, name), results.ResultBase)


def test_the_tables_name_what_exists() -> None:
    """Each entry is about a member of both, with a reason."""
    for table in (OTHER, OTHER_VALUES, BEHAVIOUR):
        for key, reason in table.items():
            cls, member = key.split(".")
            assert hasattr(getattr(celery_result, cls), member), key
            assert hasattr(getattr(results, cls), member), key
            assert reason
