"""Laws about the files themselves."""

from __future__ import annotations

from pathlib import PurePosixPath

from tests.tooling.repository import GENERATED, ROOT, lines_matching, tracked_texts

LINES_MAX = 600
GENERATED_PATH = str(GENERATED.relative_to(ROOT))


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    """A tracked file works in every clone: it names no directory of one machine."""
    assert lines_matching(r"(^|[^A-Za-z0-9_.-])/(work|farm|home|root|Users)/") == []


def test_no_file_names_the_address_of_a_package() -> None:
    """Where packages come from is the machine's business: no address, no lock file."""
    assert lines_matching(r"https?://[^ \"]+\.(whl|tgz|tar\.gz|deb)\b") == []
    locks = {"uv.lock", "poetry.lock", "package-lock.json", "yarn.lock", "pnpm-lock.yaml"}
    assert [path for path in tracked_texts() if PurePosixPath(path).name in locks] == []


def test_no_module_is_too_long_to_live_in() -> None:
    """A Python file that people write has at most 600 lines."""
    long = {
        path: lines
        for path, text in tracked_texts().items()
        if path.endswith(".py") and not path.startswith(GENERATED_PATH)
        if (lines := text.count("\n")) > LINES_MAX
    }
    assert long == {}


def test_every_exception_to_a_rule_carries_its_reason() -> None:
    """A `noqa` or `type: ignore` names its rule and is followed by a sentence on why."""
    rule = r"(: [A-Z]+[0-9]+\b(, ?[A-Z]+[0-9]+\b)*|\[[a-z-]+(, ?[a-z-]+)*\]|: no cover)"
    reason = r".*[a-z]{2}"
    bare = lines_matching(rf"#\s*(noqa|type:\s*ignore|pragma)(?!{rule}{reason})")
    ours = [line for line in bare if not line.startswith((GENERATED_PATH, "tests/tooling/"))]
    assert ours == []
