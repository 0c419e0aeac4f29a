"""Every line the server logs is explained in docs/operating.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.tooling.repository import ROOT

SERVER = ROOT / "server" / "resultd_server"
OPERATING = ROOT / "docs" / "operating.md"
LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}


def logged() -> Iterator[tuple[str, str, str]]:
    """(event, level, where) of every call of a logger."""
    for path in sorted(SERVER.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if is_line(node):
                assert isinstance(node, ast.Call)
                assert isinstance(node.func, ast.Attribute)
                for event in events(node, path):
                    level = node.func.attr.replace("exception", "error")
                    yield event, level, f"{path.relative_to(ROOT)}:{node.lineno}"


def is_line(node: ast.AST) -> bool:
    """Whether this is `log.LEVEL(…)`."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in LEVELS
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in {"log", "_log", "logger"}
    )


def events(call: ast.Call, path: Path) -> list[str]:
    """What the line is called: a text, or one of two."""
    said = call.args[0]
    either = [said.body, said.orelse] if isinstance(said, ast.IfExp) else [said]
    assert all(isinstance(each, ast.Constant) for each in either), f"{path}:{call.lineno}"
    return [str(each.value) for each in either if isinstance(each, ast.Constant)]


def explained() -> dict[str, str]:
    """Levels by event, of the table under "Logs"; after a colon the level's cell says when."""
    _, _, logs = OPERATING.read_text().partition("\n## Logs\n")
    table, _, _ = logs.partition("\n## ")
    found: dict[str, str] = {}
    for names, levels in re.findall(r"(?m)^\| (`.+?`) \| ([a-z, ]+)", table):
        each = re.findall(r"`([^`]+)`", names)
        said = [level.strip() for level in levels.split(",")]
        found |= dict(zip(each, said * len(each) if len(said) == 1 else said, strict=True))
    return found


def test_every_line_stands_in_the_table_with_its_level() -> None:
    """Whoever finds a line in a log finds it in the documentation, and no line is made up."""
    assert {event: level for event, level, _ in logged()} == explained()


def test_a_line_has_one_level_wherever_it_is_logged() -> None:
    """So that the table can say it, and filters work."""
    levels: dict[str, set[str]] = {}
    for event, level, _ in logged():
        levels.setdefault(event, set()).add(level)
    assert {event: said for event, said in levels.items() if len(said) > 1} == {}
