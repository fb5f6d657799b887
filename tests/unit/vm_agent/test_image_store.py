"""The image store as an operator has it: whole or not at all, whatever dies or changes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from schemas.units import MIB
from vm_agent.images import (
    ImageError,
    ImageExistsError,
    ImageInputError,
    ImageStore,
    UnknownImageError,
)

ROOT = Path(__file__).resolve().parents[3]

KILLED_IN_THE_COPY = """
import os, signal, sys
from pathlib import Path
from vm_agent.images import ImageStore

def progress(what, done, total):
    if what == "checking rootfs":
        os.kill(os.getpid(), signal.SIGKILL)

store, kernel, rootfs = map(Path, sys.argv[1:])
ImageStore(store).add("web", kernel, rootfs_path=rootfs, progress=progress)
"""


class Files:
    """Files to import, and the store."""

    def __init__(self, folder: Path) -> None:
        self.kernel = folder / "vmlinux"
        self.kernel.write_bytes(b"\x7fELF kernel")
        self.rootfs = folder / "rootfs.img"
        self.rootfs.write_bytes(os.urandom(2 * MIB + 512))
        self.directory = folder / "images"
        self.store = ImageStore(self.directory)

    def add(self, name: str = "web") -> None:
        self.store.add(name, self.kernel, rootfs_path=self.rootfs, initrd_path=self.kernel)

    @property
    def entries(self) -> list[str]:
        """What is in the store's directory."""
        return sorted(path.name for path in self.directory.iterdir())

    def change(self, part: str, content: bytes) -> None:
        """Write to a file of the image behind the store's back."""
        path = self.directory / "web" / part
        path.chmod(0o644)
        path.write_bytes(content)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    """Files and an empty store; at the end nothing unfinished is in it."""
    made = Files(tmp_path)
    yield made
    if made.directory.exists():
        assert not [name for name in made.entries if name.startswith(".")]


def test_an_image_has_a_rootfs_and_says_all_of_it(files: Files) -> None:
    """Digests of what is stored, the size, the time; files are read only, directories open."""
    files.store.add(
        "web", files.kernel, rootfs_path=files.rootfs, description="Web", allowed_args=["b", "a"],
        driver_args={"*": "console=ttyS0"},
    )  # fmt: skip
    image = ImageStore(files.directory).open("web")
    assert image.rootfs is not None
    assert image.rootfs.read_bytes() == files.rootfs.read_bytes()
    manifest = image.manifest
    assert manifest.rootfs_sha256 == sha256(files.rootfs.read_bytes()).hexdigest()
    assert (manifest.rootfs_bytes, manifest.description) == (2 * MIB + 512, "Web")
    assert manifest.imported_at is not None
    assert manifest.allowed_args == ("a", "b")
    folder = files.directory / "web"
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes == dict.fromkeys(("image.json", "kernel", "rootfs"), 0o444)
    assert folder.stat().st_mode & 0o777 == files.directory.stat().st_mode & 0o777 == 0o755


def test_a_manifest_from_before_is_read(files: Files) -> None:
    """Without rootfs, description and time."""
    files.store.add("web", files.kernel)
    digest = sha256(files.kernel.read_bytes()).hexdigest()
    old = {"kernel": "kernel", "kernel_sha256": digest, "architecture": "x86_64",
           "allowed_args": ["spin"], "driver_args": {}}  # fmt: skip
    files.change("image.json", json.dumps(old).encode())
    image = files.store.open("web")
    assert (image.rootfs, image.manifest.imported_at) == (None, None)
    assert image.manifest.allowed_args == ("spin",)


@pytest.mark.parametrize(
    "change",
    [
        {"rootfs_sha256": None},
        {"rootfs_bytes": None},
        {"rootfs_bytes": 0},
        {"rootfs_bytes": 2**50},
        {"rootfs": "../rootfs"},
        {"rootfs": "a/b"},
        {"rootfs": ".."},
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(files: Files, change: dict[str, object]) -> None:
    """A rootfs is described whole, fits a disk, and lies in the image's directory."""
    files.add()
    path = files.directory / "web" / "image.json"
    files.change("image.json", json.dumps(json.loads(path.read_text()) | change).encode())
    with pytest.raises(ImageError, match="'web' is damaged"):
        files.store.open("web")


def test_symbolic_links_in_the_store_are_not_followed(files: Files, tmp_path: Path) -> None:
    """Neither of a file nor of an image; the store itself may lie behind one."""
    files.add()
    kernel = files.directory / "web" / "kernel"
    kernel.rename(tmp_path / "moved")
    kernel.symlink_to(tmp_path / "moved")
    with pytest.raises(ImageError, match="symbolic link"):
        files.store.open("web")
    (files.directory / "alias").symlink_to(files.directory / "web")
    assert files.store.names() == ["web"]
    with pytest.raises(UnknownImageError):
        files.store.open("alias")
    (files.directory / "alias").unlink()
    (tmp_path / "link").symlink_to(files.directory)
    behind = ImageStore(tmp_path / "link")
    behind.add("web", files.kernel)
    assert behind.open("web").kernel.read_bytes() == files.kernel.read_bytes()


def test_names_that_no_vm_could_say_are_not_advertised(files: Files) -> None:
    """A copy that an operator keeps beside an image would spoil the host's heartbeat."""
    files.add()
    for odd in ("web.bak", "Web", "notes"):
        (files.directory / odd).mkdir()
    (files.directory / "web.bak" / "image.json").write_text("{}")
    assert files.store.names() == ["web"]
    assert files.store.folders() == ["notes", "web"]


def test_a_new_image_and_a_replaced_one_are_seen_at_once(files: Files) -> None:
    """By a store that is open already, as a running agent's is."""
    agents = ImageStore(files.directory)
    assert agents.names() == []
    files.add()
    assert agents.names() == ["web"]
    before = agents.open("web")
    files.kernel.write_bytes(b"\x7fELF another kernel")
    assert agents.recall("web") == before
    files.add()
    assert agents.recall("web") is None
    assert agents.open("web").kernel.read_bytes() == b"\x7fELF another kernel"
    files.store.remove("web")
    with pytest.raises(UnknownImageError):
        agents.recall("web")


@pytest.mark.parametrize("part", ["kernel", "initrd", "rootfs"])
def test_damage_that_comes_later_is_noticed(files: Files, part: str) -> None:
    """By size or time of change; a stat is enough as long as there is none."""
    files.add()
    read: list[str] = []
    files.store.open("web", lambda what, done, total: read.append(what))
    assert {what.rpartition("/")[2] for what in read} == {"kernel", "initrd", "rootfs"}
    read.clear()
    files.store.open("web", lambda what, done, total: read.append(what))
    assert read == []
    path = files.directory / "web" / part
    content = path.read_bytes()
    files.change(part, content[:-1] + bytes([content[-1] ^ 1]))
    for _ in range(2):
        with pytest.raises(ImageError, match=f"{part} has another SHA-256 digest"):
            files.store.open("web", lambda what, done, total: read.append(what))
        with pytest.raises(ImageError, match=f"{part} has another SHA-256 digest"):
            files.store.recall("web")
    # Damage is not read again either: anybody may name the image, again and again.
    assert read.count(f"checking web/{part}") == len(range(0, path.stat().st_size, MIB))


def test_a_vm_that_has_its_disk_boots_without_the_rootfs(files: Files) -> None:
    """So its damage matters to new VMs only, and a boot does not wait until it is read."""
    files.add()
    (files.directory / "web" / "rootfs").unlink()
    assert files.store.open("web", whole=False).kernel.exists()
    with pytest.raises(ImageError, match="rootfs: No such file"):
        files.store.open("web")


def test_verify_reads_everything_again(files: Files) -> None:
    """Also what looks as it did before: a disk that rots changes no time."""
    files.add()
    path = files.directory / "web" / "rootfs"
    files.store.open("web")
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"rot")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    files.store.open("web")
    with pytest.raises(ImageError, match="rootfs has another SHA-256"):
        files.store.verify("web")
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(ImageError, match="rootfs has another size"):
        files.store.verify("web")


def test_an_existing_image_is_replaced_only_if_wanted(files: Files) -> None:
    """And refused before anything is copied."""
    files.add()
    with pytest.raises(ImageExistsError, match="web"):
        files.store.add("web", files.rootfs, replace=False)
    assert files.store.open("web").kernel.read_bytes() == files.kernel.read_bytes()


def test_who_has_the_old_image_open_keeps_it(files: Files) -> None:
    """A VM that runs, or a disk that is being copied, is not disturbed by a replacement."""
    files.add()
    content = files.rootfs.read_bytes()
    with (files.directory / "web" / "rootfs").open("rb") as used:
        files.rootfs.write_bytes(b"other")
        files.add()
        assert used.read() == content
    assert (files.directory / "web" / "rootfs").read_bytes() == b"other"


def test_an_import_that_is_killed_leaves_no_image(files: Files) -> None:
    """The old one stays whole; the next import, or verify, removes what is left."""
    files.add()
    before = files.store.open("web").manifest
    arguments = [str(path) for path in (files.directory, files.kernel, files.rootfs)]
    for clear in (files.store.tidy, lambda: files.add("other")):
        done = subprocess.run(
            [sys.executable, "-c", KILLED_IN_THE_COPY, *arguments],
            cwd=ROOT, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL
        (left,) = [name for name in files.entries if name.startswith(".")]
        assert left.startswith(".new-")
        assert "web" in files.store.names()
        assert files.store.open("web").manifest == before
        clear()
        assert not [name for name in files.entries if name.startswith(".")]


def test_an_import_that_fails_leaves_nothing(files: Files) -> None:
    """Whatever it is that ends it, the next one is not disturbed."""

    def end(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.store.add("web", files.kernel, progress=end)
    assert files.entries == []
    files.rootfs.unlink()
    os.mkfifo(files.rootfs)
    with pytest.raises(ImageError, match="not a regular file"):
        files.add()
    assert files.entries == []


@pytest.mark.parametrize(
    "fields",
    [
        {"allowed_args": ["Init"]},
        {"allowed_args": ["root=x"]},
        {"driver_args": {"*": "a\nb"}},
        {"driver_args": {"qemu": "x" * 1025}},
        {"description": "x" * 257},
        {"architecture": "pdp11"},
    ],
)
def test_what_cannot_be_an_image_is_refused_before_it_is_copied(
    files: Files, fields: dict[str, object]
) -> None:
    """Nothing is written."""
    with pytest.raises(ImageInputError):
        files.store.add("web", files.kernel, **fields)  # type: ignore[arg-type]
    assert not files.directory.exists()


def test_two_imports_at_once_both_come_out_whole(files: Files, tmp_path: Path) -> None:
    """The second waits, and says so; what an import at work has written is not cleared."""
    waiting = threading.Event()
    copying = threading.Event()

    def slow(what: str, done: int, total: int) -> None:
        copying.set()
        assert waiting.wait(10)
        assert ImageStore(files.directory).tidy() == 0

    def second() -> None:
        assert copying.wait(10)
        ImageStore(files.directory).add("web", kernel, waiting=waiting.set)

    kernel = tmp_path / "second"
    kernel.write_bytes(b"\x7fELF second")
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(files.store.add, "web", files.kernel, progress=slow)
        pool.submit(second).result(30)
        one.result(30)
    assert files.entries == ["web"]
    assert ImageStore(files.directory).open("web").kernel.read_bytes() == b"\x7fELF second"


def test_a_reader_never_sees_half_of_a_replacement(files: Files) -> None:
    """Old or new, but never a manifest of one with the files of the other."""
    files.add()
    stop = threading.Event()

    def read() -> int:
        reads = 0
        while not stop.is_set():
            ImageStore(files.directory).open("web")
            reads += 1
        return reads

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        try:
            for n in range(25):
                files.kernel.write_bytes(b"\x7fELF %d" % n)
                files.add()
        finally:
            stop.set()
        assert reading.result(30) > 0


def test_an_image_is_removed_whole_damaged_or_not(files: Files) -> None:
    """And not twice."""
    files.add()
    files.change("image.json", b"{")
    files.store.remove("web")
    assert files.entries == []
    for name in ("web", "other"):
        with pytest.raises(UnknownImageError, match=name):
            files.store.remove(name)
    with pytest.raises(ImageInputError):
        files.store.remove("../web")
