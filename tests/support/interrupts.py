"""What a signal's handler raises, at each place where it may.

Python looks for signals after calls, where a function begins and where a loop goes back; a trace
function raises at each of these places, one after the other.
"""

from __future__ import annotations

import dis
import sys
from types import CodeType, FrameType, ModuleType
from typing import Any

import pytest

# Until then a frame can be told, as it begins, that its every instruction is to be traced.
each_place = pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="Python traces no instruction of a frame that has begun"
)


class Interrupt(BaseException):
    """What a signal's handler raises."""


def looks_for_signals(code: CodeType) -> set[int]:
    """Where Python looks for signals in a function: offsets of the instructions behind."""
    found: set[int] = set()
    before = "RESUME"  # 3.10 has none
    for instruction in dis.get_instructions(code):
        if before == "RESUME" or before.startswith("CALL"):
            found.add(instruction.offset)
        if "JUMP" in instruction.opname and instruction.argval < instruction.offset:
            found.add(instruction.argval)
        before = instruction.opname
    return found


class Interrupts:
    """Raises at the place of a number, counted over what some modules do in this thread."""

    def __init__(self, place: int, *modules: ModuleType) -> None:
        self._left = place
        self._files = {module.__file__ for module in modules}
        self._places: dict[CodeType, set[int]] = {}
        self.raised = False

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self._call)

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename not in self._files:
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return self._opcode

    def _opcode(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "opcode" and not self.raised:
            code = frame.f_code
            if code not in self._places:
                self._places[code] = looks_for_signals(code)
            if frame.f_lasti in self._places[code]:
                self._left -= 1
                if self._left < 0:
                    self.raised = True
                    raise Interrupt
        return self._opcode
