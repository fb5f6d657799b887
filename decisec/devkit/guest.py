"""`python -m decisec.devkit.guest --dest FILE`: builds the tiny guest from its sources.

With the C compiler on PATH, else with the one in the pinned `ziglang` wheel. The guest is built
again only if its sources or its flags have changed.
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

SOURCES = ("entry.S", "guest.c", "guest.ld")
ZIG = "ziglang==0.15.2"

_COMPILE = (
    "-m64", "-O1", "-ffreestanding", "-fno-stack-protector", "-fno-pic", "-mno-sse", "-mno-mmx",
    "-mno-red-zone", "-mgeneral-regs-only", "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none",
)  # fmt: skip
_ZIG_COMPILE = ("-target", "x86_64-freestanding-none", "-fno-sanitize=all")
_LINK = ("-T", "guest.ld", "--build-id=none", "-z", "noexecstack", "-static")


def source_dir() -> Path:
    """Where the sources are: inside an installed package, or in the repository's tests.

    Raises:
        DevkitError: In neither place.
    """
    here = Path(__file__).resolve().parent
    for directory in (here / "guest_src", here.parents[1] / "tests" / "guest"):
        if all((directory / name).is_file() for name in SOURCES):
            return directory
    raise DevkitError("the sources of the tiny guest are not there")


def compilers() -> tuple[str, ...]:
    """What could build the guest here, best first: `cc`, `gcc`, `zig`."""
    machine = os.uname().machine
    native = [name for name in ("cc", "gcc") if machine == "x86_64" and shutil.which(name)]
    return (*native, "zig")


def build(destination: Path, compiler: str = "") -> bool:
    """Build the guest into a file, in one step.

    Args:
        destination: The ELF file to make. Beside it, `<name>.digest` says what it was made of.
        compiler: One of `compilers()`; empty for the first that works.

    Returns:
        Whether it had to be built.

    Raises:
        DevkitError: No compiler works; has the reason of each.
    """
    sources = source_dir()
    stamp = destination.with_name(f"{destination.name}.digest")
    wanted = _digest(sources, compiler)
    if destination.is_file() and stamp.is_file() and stamp.read_text().strip() == wanted:
        return False
    reasons = []
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".guest-", dir=destination.parent) as temporary:
            for name in (compiler,) if compiler else compilers():
                made = Path(temporary) / f"guest-{name}"
                try:
                    _compile(name, sources, made)
                except DevkitError as error:
                    reasons.append(str(error))
                    continue
                made.replace(destination)
                stamp.write_text(f"{wanted}\n")
                return True
    except OSError as error:
        raise DevkitError(f"cannot write {destination}: {error}") from error
    raise DevkitError("; ".join(reasons))


def _compile(compiler: str, sources: Path, made: Path) -> None:
    if compiler != "zig":
        linking = [f"-Wl,{','.join(_LINK)}", "-nostdlib", "-static", "-no-pie"]
        run(
            [compiler, *_COMPILE, *linking, "entry.S", "guest.c", "-o", str(made)],
            what=f"building the guest with {compiler}",
            cwd=sources,
        )
        return
    what = f"building the guest with {ZIG}"
    zig = [*find_uv(), "tool", "run", "--from", ZIG, "python-zig"]
    # Compiled and linked apart: zig's own link step would add a runtime that needs SSE.
    objects = []
    for name in ("entry.S", "guest.c"):
        target = made.with_suffix(f".{name}.o")
        arguments = [*_ZIG_COMPILE, *_COMPILE, "-c", name, "-o", str(target)]
        run([*zig, "cc", *arguments], what=what, cwd=sources)
        objects.append(str(target))
    run([*zig, "ld.lld", *_LINK, "-o", str(made), *objects], what=what, cwd=sources)


def _digest(sources: Path, compiler: str) -> str:
    digest = hashlib.sha256(repr((compiler, ZIG, _COMPILE, _ZIG_COMPILE, _LINK)).encode())
    for name in SOURCES:
        digest.update((sources / name).read_bytes())
    return digest.hexdigest()


def main() -> int:
    """The command. Exits 1 with a one-line reason."""
    parser = argparse.ArgumentParser(prog="decisec.devkit.guest", description=__doc__)
    parser.add_argument("--dest", required=True, type=Path, metavar="FILE")
    parser.add_argument("--compiler", default="", choices=["", "cc", "gcc", "zig"])
    options = parser.parse_args()
    try:
        built = build(options.dest, options.compiler)
    except DevkitError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"tiny guest {'built in' if built else 'is up to date:'} {options.dest}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
