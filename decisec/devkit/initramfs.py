"""Initial RAM disks for Linux guests, made from unpacked packages in pure Python.

The same input gives the same bytes. Formats: kernel documentation, initramfs-buffer-format.rst
and kbuild/modules.rst.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from decisec.devkit.uv import DevkitError

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_DIRECTORY, _PROGRAM, _FILE = 0o040755, 0o100755, 0o100644
_DEPENDS = re.compile(rb"(?:^|\0)depends=([a-z0-9_,-]*)\0")


def archive(init: bytes, busybox: bytes, modules: Iterable[tuple[str, bytes]]) -> bytes:
    """A cpio archive that holds busybox, the kernel modules in loading order, and `/init`.

    Args:
        init: The program that the kernel starts: a script for `/bin/busybox sh`.
        busybox: The executable, statically linked.
        modules: Names and contents.
    """
    entries = [
        ("bin", _DIRECTORY, b""),
        ("bin/busybox", _PROGRAM, busybox),
        ("lib", _DIRECTORY, b""),
        ("lib/modules", _DIRECTORY, b""),
        *(
            (f"lib/modules/{number:02}-{name}.ko", _FILE, content)
            for number, (name, content) in enumerate(modules)
        ),
        ("init", _PROGRAM, init),
    ]
    return _pack(entries)


def programs(files: Mapping[str, bytes]) -> bytes:
    """A cpio archive of programs by name: behind another one, it adds to it and replaces."""
    return _pack((name, _PROGRAM, content) for name, content in files.items())


def _pack(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    made = [_entry(number, *entry) for number, entry in enumerate(entries, start=1)]
    return b"".join([*made, _entry(0, _TRAILER, 0, b"")])


def _entry(inode: int, name: str, mode: int, content: bytes) -> bytes:
    """Header, name and content, each padded to four bytes; of root, from 1970, on no device."""
    name_bytes = name.encode() + b"\0"
    user = group = mtime = device = check = 0
    links = 1
    fields = (
        *(inode, mode, user, group, links, mtime, len(content)),
        *(device, device, device, device, len(name_bytes), check),
    )
    header = _MAGIC + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name_bytes) + _padded(content)


def _padded(part: bytes) -> bytes:
    return part + bytes(-len(part) % 4)


def with_dependencies(root: Path, wanted: Iterable[str]) -> list[tuple[str, bytes]]:
    """Kernel modules and all they need, in loading order, decompressed.

    A package holds no `modules.dep` (its installation makes it), so each module is asked itself.

    Args:
        root: A kernel package, unpacked.
        wanted: Module names. Those that are built into the kernel are left out.

    Raises:
        DevkitError: The package does not hold one of them.
    """
    files = {_module_name(path): path for path in sorted(root.rglob("*.ko*"))}
    built_in = {
        _module_name(Path(line))
        for listing in root.rglob("modules.builtin")
        for line in listing.read_text().splitlines()
    }
    found: dict[str, bytes] = {}
    for name in wanted:
        _add(name, files, built_in, found)
    return list(found.items())


def _add(name: str, files: Mapping[str, Path], built_in: set[str], found: dict[str, bytes]) -> None:
    if name in found or name in built_in:
        return
    if name not in files:
        raise DevkitError(f"the kernel package holds no module {name}")
    content = _read_module(files[name])
    needs = _DEPENDS.search(content)
    for other in needs[1].decode().split(",") if needs is not None else ():
        if other:
            _add(other.replace("-", "_"), files, built_in, found)
    found[name] = content


def _module_name(path: Path) -> str:
    """The kernel takes dashes and underscores for the same."""
    return path.name.partition(".")[0].replace("-", "_")


def _read_module(path: Path) -> bytes:
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content
