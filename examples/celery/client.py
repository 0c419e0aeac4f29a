"""The program that calls the tasks and waits for them: python client.py FILE FILE."""

from __future__ import annotations

import asyncio
import sys

from celery import chord, group
from tasks import count_words, most_frequent


def each(paths: list[str]) -> None:
    """Prints the number of words of each file, whichever is counted first."""
    result = group(count_words.s(path) for path in paths).apply_async()
    for words in result.iterate(timeout=60):
        print(f"{sum(words.values())} words")


def failure() -> None:
    """Shows what a task that fails leaves."""
    result = count_words.delay("no such file")
    try:
        result.get(timeout=60)
    except FileNotFoundError as error:
        print(f"{result.name} on {result.worker}: {error}")
        print(result.traceback.splitlines()[-1])


async def together(paths: list[str]) -> None:
    """Prints the most frequent words of all files: a chord, awaited."""
    result = chord((count_words.s(path) for path in paths), most_frequent.s(3)).apply_async()
    for word, number in await asyncio.wait_for(result, 60):
        print(f"{word}: {number}")


def main(paths: list[str]) -> None:
    """Counts the words of files."""
    each(paths)
    failure()
    asyncio.run(together(paths))


if __name__ == "__main__":
    main(sys.argv[1:])
