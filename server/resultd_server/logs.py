"""Logging: lines for people on a terminal, JSON elsewhere, always to stderr.

What peers send may stand in a line: it is one value of one line, whatever it holds, and
what looks like a credential is taken out. Whoever logs goes on, whatever becomes of the line:
it may be left out where there are many, or lost where it cannot be written, and is counted then.
"""

from __future__ import annotations

import atexit
import bisect
import json
import logging
import os
import re
import sys
from typing import Any

import structlog

from resultd_server.log_rate import Kind, Rates
from resultd_server.log_sink import LINE_BYTES_MAX, Sink

VALUE_CHARS_MAX = 4_096
EXCEPTION_CHARS_MAX = 16_384  # on a terminal; elsewhere the line is bounded
HIDDEN = "***"
CUT = "…"

_SECRET_KEYS = frozenset({"authorization", "cookie", "password", "secret", "token"})
_SECRETS = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[^\s\"',]+"), rf"\1 {HIDDEN}"),
    (re.compile(r"(?i)\b((?:token|password|secret|cookie)=)[^&\s\"',]+"), rf"\1{HIDDEN}"),
    (re.compile(r"(://[^\s/@:]*:)[^\s/@]+@"), rf"\1{HIDDEN}@"),
    (re.compile(r"\brsd_[\w-]{8,}"), HIDDEN),
)
"""A header's credentials, a parameter of an address, the password before an address' host, and
tokens of ours wherever they stand."""

# What moves a terminal's cursor, ends a line, or turns the direction of writing.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_UNPRINTABLE_IN_LINES = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"  # a traceback has lines
)


log = structlog.get_logger("resultd.logs")

_sink: Sink | None = None


def configure(level: str) -> None:
    """Sets up structlog and the standard library's loggers alike."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # As text from here: renderers of their own would print the values of local variables.
    shared += [structlog.processors.format_exc_info, without_secrets]
    renderer: structlog.typing.Processor = json_line
    if sys.stderr is not None and sys.stderr.isatty():
        shared.append(printable)
        renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    rates = Rates()
    _open_sink(rates, [*shared, renderer])
    structlog.configure(
        processors=[_Seldom(rates), *shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=_Lines,
        cache_logger_on_first_use=True,
    )
    handler = _Handler()
    handler.addFilter(lambda record: _few(rates, record))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processor=renderer,
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("grpc._cython.cygrpc").addFilter(_without_traceback)
    # Its debug lines are about itself, hundreds before the first call.
    logging.getLogger("grpc").setLevel(max(logging.INFO, logging.getLogger().level))


def flush() -> None:
    """Waits a moment until what was logged is written."""
    if _sink is not None:
        _sink.flush()


def close() -> None:
    """Writes what was logged, for a second at most; at the process' end this is done by itself."""
    if _sink is not None:
        _sink.close()


def lost() -> int:
    """How many lines could not be written."""
    return 0 if _sink is None else _sink.lost


def sentence(text: str) -> None:
    """Says something to whoever started the process, behind what was logged before."""
    if _sink is None:
        sys.stderr.write(f"{text}\n")
    else:
        _sink.put(text, urgent=True)


def _open_sink(rates: Rates, processors: list[structlog.typing.Processor]) -> None:
    global _sink  # loggers are kept once they were used: they ask for the one there is

    # What the log says of itself: made into a line here, and never left out.
    _log: Any = structlog.wrap_logger(
        structlog.ReturnLogger(),
        processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )

    def tell_left_out() -> None:
        for (event, key, value), count in rates.left_out().items():
            besides = {key: value} if key else {}
            sink.put(_log.warning("lines left out", of=event, **besides, count=count))

    if _sink is None:
        atexit.register(close)
    close()
    # Closed by whoever started us: the number may be another file's by now.
    nowhere = sys.stderr is None
    descriptor = os.open(os.devnull, os.O_WRONLY) if nowhere else sys.stderr.fileno()
    sink = _sink = Sink(
        descriptor,
        lost=lambda count: str(_log.warning("log lines lost", count=count)),
        every_second=tell_left_out,
        encoding="utf-8" if nowhere else sys.stderr.encoding,
    )


def _put(line: str, *, urgent: bool = False) -> None:
    assert _sink is not None  # since `configure`
    _sink.put(line, urgent=urgent)


def _put_urgent(line: str) -> None:
    _put(line, urgent=True)


class _Lines:
    """What structlog takes for a logger: a method for each level."""

    def __init__(self, *_: object) -> None:
        self.debug = self.info = self.warning = _put
        self.error = self.critical = _put_urgent


class _Handler(logging.Handler):
    """The same for the standard library's loggers."""

    def emit(self, record: logging.LogRecord) -> None:
        """Has a record's line written; one that cannot be made is told in another."""
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001  whatever a library's arguments make of themselves
            log.warning("a line cannot be made", of=record.name, error=type(error).__name__)
        else:
            _put(line, urgent=record.levelno >= logging.ERROR)


class _Seldom:
    """A processor: leaves lines out where there are many of their kind. Debugging wants all."""

    def __init__(self, rates: Rates) -> None:
        self._rates = rates

    def __call__(
        self, _: object, level: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        if level != "debug":
            key = next((key for key in ("reason", "method") if key in event), "")
            if not self._rates.admit(Kind(event["event"], key, event.get(key, ""))):
                raise structlog.DropEvent
        return event


def _few(rates: Rates, record: logging.LogRecord) -> bool:
    """Whether there are few lines of a library's logger: what it says may be another each time."""
    return record.levelno <= logging.DEBUG or rates.admit(Kind(record.name))


def json_line(_: object, __: str, event: structlog.typing.EventDict) -> str:
    """A renderer: one object of JSON in plain ASCII; where it is too long its values are cut."""
    line = json.dumps(event, default=repr)
    if len(line) < LINE_BYTES_MAX:
        return line
    plain = {
        key: value if isinstance(value, str | int | float | None) else json.dumps(value)
        for key, value in json.loads(line).items()
    }

    def cut_to(chars: int) -> str:
        return json.dumps({key: _cut(key, value, chars) for key, value in plain.items()})

    too_long = bisect.bisect_left(
        range(LINE_BYTES_MAX), LINE_BYTES_MAX, key=lambda chars: len(cut_to(chars))
    )
    if too_long:
        return cut_to(too_long - 1)
    return json_line(_, __, {key: plain.get(key) for key in ("event", "level", "timestamp")})


def _cut(key: str, value: Any, chars: int) -> Any:
    """A traceback says at its end why; other values at their beginning."""
    if not isinstance(value, str) or len(value) <= chars:
        return value
    return CUT + value[len(value) - chars :] if key == "exception" else value[:chars] + CUT


def _without_traceback(record: logging.LogRecord) -> bool:
    """What gRPC itself has to say of a call, as that its caller has gone, is a line."""
    if record.exc_info and record.exc_info[1] is not None:
        record.msg, record.args = f"{record.getMessage()}: {record.exc_info[1]}", ()
        record.exc_info = None
    return True


def without_secrets(
    _: object, __: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """A processor: hides credentials, and cuts values that are too long."""
    for key, value in event.items():
        if key.lower() in _SECRET_KEYS:
            event[key] = HIDDEN
        elif isinstance(value, str):
            if key != "exception":
                value = _cut(key, value, VALUE_CHARS_MAX)
            for pattern, shown in _SECRETS:
                value = pattern.sub(shown, value)
            event[key] = _cut(key, value, EXCEPTION_CHARS_MAX)
    return event


def printable(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """A processor: writes characters that a terminal would act on as escapes."""
    for key, value in event.items():
        if isinstance(value, str):
            found = _UNPRINTABLE_IN_LINES if key == "exception" else _UNPRINTABLE
            event[key] = found.sub(_escape, value)
    return event


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
