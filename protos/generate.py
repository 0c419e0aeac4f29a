"""Makes the committed stubs in `pyclient/resultd/v1` from the protos.

    python protos/generate.py            writes them
    python protos/generate.py --check    exits 1 if what is committed differs

Runs the pinned toolchain of `toolchain.txt` in an environment of its own below
`.cache/`, made on first use, so that its old packages touch nothing else.
"""

from __future__ import annotations

import argparse
import filecmp
import hashlib
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

PROTOS = Path(__file__).resolve().parent
ROOT = PROTOS.parent
TOOLCHAIN = PROTOS / "toolchain.txt"
PACKAGE = Path("resultd/v1")
STUBS = ROOT / "pyclient" / PACKAGE
PYTHON_BELOW = (3, 13)  # the toolchain has no wheels for later ones
INIT = '"""Generated messages and service stubs of the protocol `resultd.v1`."""\n'


def toolchain_python() -> Path:
    """The interpreter that has the pinned generator, made if it is missing."""
    if sys.version_info >= PYTHON_BELOW:
        sys.exit("The pinned toolchain needs Python 3.10 to 3.12; make takes PYTHON=… and VENV=…")
    digest = hashlib.sha256(TOOLCHAIN.read_bytes() + sys.version.encode()).hexdigest()[:12]
    home = ROOT / ".cache" / f"toolchain-{digest}"
    python = home / "bin" / "python"
    done = home / "complete"
    if not done.exists():
        shutil.rmtree(home, ignore_errors=True)
        venv.create(home, with_pip=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--requirement", TOOLCHAIN], check=True
        )
        done.touch()
    return python


def generate(into: Path) -> None:
    """Writes every stub below `into`, laid out as the import path."""
    python = toolchain_python()
    files = sorted(str(p.relative_to(PROTOS)) for p in (PROTOS / PACKAGE).glob("*.proto"))
    subprocess.run(
        [
            python,
            "-m",
            "grpc_tools.protoc",
            f"--plugin=protoc-gen-mypy={python.parent / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={python.parent / 'protoc-gen-mypy_grpc'}",
            "--proto_path=.",
            f"--python_out={into}",
            f"--grpc_python_out={into}",
            f"--mypy_out=quiet:{into}",
            f"--mypy_grpc_out=quiet:{into}",
            *files,
        ],
        cwd=PROTOS,
        check=True,
    )
    package = into / PACKAGE
    for stub in package.glob("*_pb2_grpc.py*"):
        # Files of messages alone get an empty service stub: leave it out.
        proto = PROTOS / PACKAGE / f"{stub.name.split('_pb2_grpc')[0]}.proto"
        if "\nservice " not in proto.read_text():
            stub.unlink()
    (package / "__init__.py").write_text(INIT)


def differences(made: Path, committed: Path) -> list[str]:
    """Names of stubs that are missing, left over or different."""
    names = {p.name for p in made.iterdir()} | {
        p.name for p in committed.iterdir() if p.suffix in (".py", ".pyi")
    }
    return sorted(
        name
        for name in names
        if not (made / name).is_file()
        or not (committed / name).is_file()
        or not filecmp.cmp(made / name, committed / name, shallow=False)
    )


def main() -> int:
    """Writes the stubs, or with --check compares them; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as temporary:
        generate(Path(temporary))
        made = Path(temporary) / PACKAGE
        if check:
            stale = differences(made, STUBS)
            for name in stale:
                path = STUBS.relative_to(ROOT) / name
                print(f"{path}: not what the protos make; run `make proto`")
            return 1 if stale else 0
        shutil.rmtree(STUBS, ignore_errors=True)
        shutil.copytree(made, STUBS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
