"""What `import resultd` does."""

from __future__ import annotations

import subprocess
import sys

import pytest

import resultd


def test_the_import_is_light_and_a_client_opens_nothing() -> None:
    """grpc is loaded by the first use, and no thread is started before."""
    program = (
        "import sys, threading, resultd\n"
        "assert not [m for m in sys.modules if m.startswith(('grpc', 'google'))], 'import'\n"
        "client = resultd.Client('resultd://127.0.0.1:9')\n"
        "client.AsyncResult('x'), client.GroupResult('g', []), client.group('g')\n"
        "resultd.aio.Client('resultd://127.0.0.1:9').AsyncResult('x')\n"
        "assert not [m for m in sys.modules if m.startswith('grpc')], 'construction'\n"
        "assert threading.active_count() == 1\n"
        "assert not [m for m in ('celery', 'lmdb', 'resultd_server') if m in sys.modules]\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 0


@pytest.mark.parametrize("name", resultd.__all__)
def test_every_public_name_is_there(name: str) -> None:
    """And listed by dir()."""
    assert getattr(resultd, name) is not None
    assert name in dir(resultd)


def test_other_names_are_not() -> None:
    """As of any module."""
    with pytest.raises(AttributeError, match="nix"):
        resultd.nix  # noqa: B018 (the access is what is tested)
    with pytest.raises(AttributeError, match="nix"):
        resultd.results.nix  # noqa: B018 (the same)
