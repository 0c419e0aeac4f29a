"""Which ids of tasks and groups a server takes (`validate.id_` there)."""

from __future__ import annotations

import re

ID_BYTES_MAX = 255
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def fits(id_: str) -> bool:
    """Whether it has 1 to 255 bytes of UTF-8, and no control characters."""
    if id_.isascii() and id_.isprintable() and 0 < len(id_) <= ID_BYTES_MAX:
        return True  # nearly all
    size_bytes = len(id_.encode("utf-8", "surrogatepass"))
    return 0 < size_bytes <= ID_BYTES_MAX and not _UNFIT.search(id_)
