"""Fuzzing led by coverage, where atheris is installed: `python -m tests.fuzz.guided TARGET …`.

`python -m tests.fuzz.guided url -max_total_time=60`: what follows the target is libFuzzer's.
More than a second of CPU for an input is found, as whatever a target raises is. What it finds it
writes to a file `crash-…`; put a small one into `tests/fuzz/corpus`.
"""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["resultd", "resultd_server"]):
    from tests.fuzz import mutate, targets
    from tests.fuzz.bounded import bounded
    from tests.fuzz.seeds import seeds_of


def _mutator(data: bytes, max_size: int, seed: int) -> bytes:
    dice = random.Random(seed)
    if dice.random() < 0.5:
        return bytes(atheris.Mutate(data, max_size))
    return mutate.data(data, dice)[:max_size]


def main() -> None:
    """Fuzzes one target until libFuzzer is done."""
    name, *options = sys.argv[1:]
    with contextlib.ExitStack() as stack:
        if name in targets.PLAIN:
            target = targets.PLAIN[name]
        else:
            target = stack.enter_context(targets.Rpcs()).targets()[name]
        corpus = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="corpus-")))
        for number, seed in enumerate(seeds_of(name)):
            (corpus / str(number)).write_bytes(seed)
        timed = bounded(target)

        def fuzzed(raw: bytes) -> None:
            timed(raw)

        atheris.Setup([sys.argv[0], *options, str(corpus)], fuzzed, custom_mutator=_mutator)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
