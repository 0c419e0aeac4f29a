"""Where log lines go: a thread of its own writes them, so nobody waits for them or fails by them.

sink = Sink(sys.stderr.fileno(), lost=lambda count: f"{count} lines lost")
sink.put("a line")  # at once, whatever becomes of it
sink.put("why it ends", urgent=True)  # waits until it is written, FLUSH_S at most
sink.close()  # waits for all that is still to be written, CLOSE_S at most

A line is one write, with its end, and short enough that those of several processes never stand in
each other (decision 0024). What cannot be written, or has no room, is counted and told later.
"""

from __future__ import annotations

import os
import queue
import select
import stat
import threading
import time
from collections.abc import Callable

LINE_BYTES_MAX = 4_095
"""With its end. Pipes take as much as 4,096 bytes, PIPE_BUF, as a whole or not at all."""

LINES_MAX = 4_096
BYTES_MAX = 2**20
"""Waiting to be written: a second of a pipe that takes 1 MiB. Urgent ones may be as many again."""

FLUSH_S = 0.1
"""What whoever says something urgent waits for it. Where that was not enough nobody waits again
until everything is written."""

CLOSE_S = 1.0
TELL_S = 1.0

_FILE_WRITE_BYTES = 65_536
"""Lines that wait are written together: to a file, whose writes are whole, so many of them."""


class _Mark(threading.Event):
    """Stands between lines, and is set when those before it are written."""

    def __init__(self, *, last: bool = False) -> None:
        super().__init__()
        self.last = last


class Sink:
    """Lines for a file, pipe, socket or terminal that somebody has opened.

    Attributes:
        lost: how many lines could not be written, or had no room.
    """

    def __init__(
        self,
        descriptor: int,
        *,
        lost: Callable[[int], str],
        every_second: Callable[[], None] = lambda: None,
        encoding: str = "utf-8",
    ) -> None:
        """`lost` makes the line that says how many were; the thread calls `every_second`."""
        self.lost = 0
        self._descriptor = os.dup(descriptor)  # whoever closes theirs leaves this one open
        self._encoding = encoding
        self._say_lost = lost
        self._every_second = every_second
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._write_bytes_max = _FILE_WRITE_BYTES if regular else LINE_BYTES_MAX
        # Both bear that whoever holds them comes again: a collection of garbage logs what it finds.
        self._lock = threading.RLock()
        self._queue: queue.SimpleQueue[bytes | _Mark] = queue.SimpleQueue()
        self._lines = self._bytes = self._told = 0
        self._behind = self._closed = False
        self._torn = False  # the last line is there in part
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def put(self, line: str, *, urgent: bool = False) -> None:
        """Has a line written; it raises nothing, and waits only if it is urgent."""
        written = f"{line}\n".encode(self._encoding, "backslashreplace")
        if self._closed:
            self._put_now(written)
            return
        room = 2 if urgent else 1
        with self._lock:
            if self._lines >= LINES_MAX * room or self._bytes + len(written) > BYTES_MAX * room:
                self.lost += 1
                return
            self._lines += 1
            self._bytes += len(written)
        self._queue.put(written)
        if urgent:
            self.flush()

    def flush(self) -> None:
        """Waits until what was put is written, FLUSH_S at most."""
        if self._behind or self._closed or threading.current_thread() is self._thread:
            return
        mark = _Mark()
        self._queue.put(mark)
        self._behind = not mark.wait(FLUSH_S)

    def close(self) -> None:
        """Writes what is left, for CLOSE_S at most; what comes later, if it does not block."""
        if self._closed:
            return
        self._closed = True
        mark = _Mark(last=True)
        self._queue.put(mark)
        mark.wait(CLOSE_S)

    def _put_now(self, line: bytes) -> None:
        _, writable, _ = select.select([], [self._descriptor], [], 0)
        lost = self._write(line) if writable else 1
        with self._lock:
            self.lost += lost

    def _run(self) -> None:
        due_s = time.monotonic() + TELL_S
        entry: bytes | _Mark | None = None
        while True:
            if entry is None:
                entry = self._next(due_s - time.monotonic())
            if isinstance(entry, bytes):
                entry = self._write_together(entry)
            elif entry is not None:
                if entry.last:
                    self._tell()
                entry.set()
                if entry.last:
                    return
                entry = None
            if self._behind and self._queue.empty():
                self._behind = False
            if time.monotonic() >= due_s:
                self._tell()
                due_s = time.monotonic() + TELL_S

    def _next(self, wait_s: float) -> bytes | _Mark | None:
        try:
            return self._queue.get(timeout=max(0.0, wait_s))
        except queue.Empty:
            return None

    def _write_together(self, line: bytes) -> bytes | _Mark | None:
        """Writes a line and those that wait behind it, as many as go; what came after them."""
        together, size = [line], len(line)
        while isinstance(after := self._next(0), bytes):
            if size + len(after) > self._write_bytes_max:
                break
            together.append(after)
            size += len(after)
        lost = self._write(b"".join(together))
        with self._lock:
            self._lines -= len(together)
            self._bytes -= size
            self.lost += lost
        return after

    def _write(self, lines: bytes) -> int:
        """How many of the lines could not be written."""
        rest = lines
        try:
            if self._torn:
                self._write_some(b"\n")
                self._torn = False
            while rest:
                written = self._write_some(rest)
                self._torn = rest[written - 1 : written] != b"\n"
                rest = rest[written:]
        except OSError:  # nobody reads any more, the disk is full: there is nobody to tell
            return rest.count(b"\n")
        return 0

    def _write_some(self, some: bytes) -> int:
        while True:
            try:
                return os.write(self._descriptor, some)
            except BlockingIOError:  # somebody who shares it made it so
                select.select([], [self._descriptor], [])

    def _tell(self) -> None:
        self._every_second()
        count = self.lost - self._told
        if count and not self._write(f"{self._say_lost(count)}\n".encode(self._encoding)):
            self._told += count
