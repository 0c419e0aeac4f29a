"""Logging: lines for people on a terminal, JSON elsewhere, always to stderr.

What peers send may stand in a line: it is one value of one line, whatever it holds, and
what looks like a credential is taken out.
"""

from __future__ import annotations

import logging
import re
import sys

import structlog

VALUE_CHARS_MAX = 4_096
HIDDEN = "***"

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


def configure(level: str) -> None:
    """Sets up structlog and the standard library's loggers alike."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # As text from here: renderers of their own would print the values of local variables.
    shared += [structlog.processors.format_exc_info, without_secrets]
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()  # ASCII alone
    if sys.stderr.isatty():
        shared.append(printable)
        renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        # A line and its end in one write: workers share the file, and with PYTHONUNBUFFERED
        # print() writes twice.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
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
            if key != "exception" and len(value) > VALUE_CHARS_MAX:
                value = value[:VALUE_CHARS_MAX] + "…"
            for pattern, shown in _SECRETS:
                value = pattern.sub(shown, value)
            event[key] = value
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
