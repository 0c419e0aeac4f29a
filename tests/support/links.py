"""Two hosts on one machine: a network namespace, and a cable from there to here.

if (reason := why_not()) is None:
    with Link() as link:
        server = ServerProcess(…, listen=f"{link.far}:7758", within=link.within)
        link.pull()      # nothing passes, and nobody is told
        link.plug()
        link.narrow()    # packets are late, and lost
        link.widen()

A process that is killed leaves its namespaces; whoever makes the next link removes them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess

_NUMBERS = itertools.count()
_NAME = re.compile(r"rl(?P<pid>\d+)-\d+")
_BLOCKS = 2**15
"""So many pairs of addresses are in 198.18.0.0/15, which is for tests of networks."""

# Where the kernel has no netem: a bucket so small that what comes at once is late or dropped.
_NARROW = (
    ("netem", "delay", "20ms", "10ms", "loss", "3%"),
    ("tbf", "rate", "1mbit", "burst", "2kb", "latency", "10ms"),
)


def why_not() -> str | None:
    """Why there can be no links here; None if there can."""
    if os.geteuid():
        return "only root may make network namespaces"
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            return f"{program} is not on this machine"
    try:
        with Link():
            return None
    except subprocess.CalledProcessError as error:
        return f"no network namespace can be made: {error.stderr.strip()}"


class Link:
    """A namespace with one cable into the caller's own; both are gone afterwards.

    Attributes:
        near, far: the addresses at its ends, the caller's and the namespace's.
        within: what to put before a command that is to run in the namespace.
        drops: packets that were lost where the cable was narrow.
    """

    def __init__(self) -> None:
        number = next(_NUMBERS)
        first = (198 << 24) + (18 << 16) + 4 * ((os.getpid() * 4 + number) % _BLOCKS)
        self.near, self.far = (_dotted(first + 1), _dotted(first + 2))
        self._name = f"rl{os.getpid()}-{number}"
        self._here, self._there = f"{self._name}a", f"{self._name}b"
        self.within = ("ip", "netns", "exec", self._name)
        self.drops = 0

    def __enter__(self) -> Link:
        remove_leftovers()
        _ip("netns", "add", self._name)
        try:
            _ip("link", "add", self._here, "type", "veth",
                "peer", "name", self._there, "netns", self._name)  # fmt: skip
            _ip("addr", "add", f"{self.near}/30", "dev", self._here)
            _ip("link", "set", self._here, "up")
            _ip("addr", "add", f"{self.far}/30", "dev", self._there, within=self.within)
            for name in ("lo", self._there):
                _ip("link", "set", name, "up", within=self.within)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        _ip("netns", "del", self._name)  # and with it both ends of the cable

    def pull(self) -> None:
        """Pulls the cable out at the far end."""
        _ip("link", "set", self._there, "down", within=self.within)

    def plug(self) -> None:
        """Plugs it in again."""
        _ip("link", "set", self._there, "up", within=self.within)

    def narrow(self) -> str:
        """Makes what passes late, and loses some of it, in both directions; how."""
        for how in _NARROW:
            done = self._discipline("replace", how)
            if done.returncode == 0:
                return how[0]
        raise subprocess.CalledProcessError(done.returncode, done.args, stderr=done.stderr)

    def widen(self) -> None:
        """Takes that back."""
        for end, within in self._ends():
            said = _run((*within, "tc", "-s", "qdisc", "show", "dev", end)).stdout.split()
            self.drops += int(said[said.index("(dropped") + 1].rstrip(","))
        self._discipline("delete", ())

    def _ends(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return ((self._here, ()), (self._there, self.within))

    def _discipline(self, verb: str, how: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        for end, within in self._ends():
            done = _run((*within, "tc", "qdisc", verb, "dev", end, "root", *how), check=False)
            if done.returncode:
                break
        return done


def remove_leftovers() -> None:
    """Removes the namespaces of processes that are no more, and what runs in them."""
    for line in _run(("ip", "netns", "list")).stdout.splitlines():
        name = line.split()[0]
        found = _NAME.fullmatch(name)
        if found is None or _lives(int(found["pid"])):
            continue
        # Another process may be at it too: what is gone already is as it should be.
        for pid in _run(("ip", "netns", "pids", name), check=False).stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        for command in (("link", "del", f"{name}a"), ("netns", "del", name)):
            _run(("ip", *command), check=False)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _dotted(address: int) -> str:
    return ".".join(str(byte) for byte in address.to_bytes(4, "big"))


def _ip(*words: str, within: tuple[str, ...] = ()) -> None:
    _run((*within, "ip", *words))


def _run(command: tuple[str, ...], *, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=check, capture_output=True, text=True)
