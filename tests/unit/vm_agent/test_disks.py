"""Disks are whole or not there, and begin with what the image has."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import ErrorCode
from schemas.units import MIB
from schemas.vms import VmSpec
from vm_agent.disks import (
    Disks,
    clone_file,
    disk_bytes,
    in_thread,
    make_disk,
    open_regular,
    remove_disk,
    replace_disk,
    with_disk,
)
from vm_agent.states import RefusedError

VM = UUID(int=7)
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108

KILLED_AFTER_3_MIB = """
import os, signal, sys
from pathlib import Path
from vm_agent.disks import make_disk

def progress(done, total):
    if done >= 3 << 20:
        os.kill(os.getpid(), signal.SIGKILL)

make_disk(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), progress)
"""


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A directory on another file system than the usual one: from there nothing is shared."""
    with tempfile.TemporaryDirectory(prefix="decisec-", dir=MEMORY) as directory:
        if Path(directory).stat().st_dev == Path(tempfile.gettempdir()).stat().st_dev:
            pytest.skip("no file system in memory beside that of temporary files")
        yield Path(directory)


def sparse(path: Path, *, data: dict[int, bytes], size_bytes: int) -> Path:
    """A file with some content here and there."""
    with path.open("wb") as file:
        file.truncate(size_bytes)
        for at, content in data.items():
            file.seek(at)
            file.write(content)
    return path


def allocated(path: Path) -> int:
    """Bytes that a file takes on disk."""
    return path.stat().st_blocks * 512


def test_a_clone_has_the_content_and_is_a_file_of_its_own(tmp_path: Path) -> None:
    """What is written to one is not seen in the other."""
    source = tmp_path / "source"
    source.write_bytes(os.urandom(3 * MIB + 17))
    before = source.read_bytes()
    clone_file(source, tmp_path / "clone")
    assert (tmp_path / "clone").read_bytes() == before
    assert (tmp_path / "clone").stat().st_mode & 0o777 == 0o600
    with (tmp_path / "clone").open("r+b") as file:
        file.write(b"changed")
    assert source.read_bytes() == before


@given(
    pieces=st.dictionaries(st.integers(0, 40), st.binary(min_size=1, max_size=9000), max_size=6),
    tail=st.integers(0, 200_000),
)
def test_any_mixture_of_data_and_holes_is_copied(pieces: dict[int, bytes], tail: int) -> None:
    """Across file systems, so that it is a copy."""
    memory = Path("/dev/shm")  # noqa: S108
    with (
        tempfile.TemporaryDirectory(prefix="decisec-") as one,
        tempfile.TemporaryDirectory(
            prefix="decisec-", dir=memory if memory.is_dir() else None
        ) as two,
    ):
        data = {at * 50_000: content for at, content in pieces.items()}
        end = max((at + len(content) for at, content in data.items()), default=0)
        source = sparse(Path(one) / "s", data=data, size_bytes=end + tail)
        clone_file(source, Path(two) / "t")
        assert (Path(two) / "t").read_bytes() == source.read_bytes()


def test_where_blocks_cannot_be_shared_the_content_is_copied(
    tmp_path: Path, elsewhere: Path
) -> None:
    """And progress is told, up to the end."""
    source = elsewhere / "source"
    source.write_bytes(os.urandom(2 * MIB + 1))
    told: list[tuple[int, int]] = []
    shared = clone_file(source, tmp_path / "copy", lambda done, total: told.append((done, total)))
    assert not shared
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert told == [(n, 2 * MIB + 1) for n in (MIB, 2 * MIB, 2 * MIB + 1)]


def test_holes_stay_holes(tmp_path: Path, elsewhere: Path) -> None:
    """A gigabyte with two bytes in it takes no gigabyte."""
    data = {5 * MIB: b"a", 700 * MIB: b"b"}
    source = sparse(elsewhere / "source", data=data, size_bytes=1024 * MIB)
    target = tmp_path / "target"
    clone_file(source, target)
    assert target.stat().st_size == 1024 * MIB
    assert allocated(target) < MIB
    with target.open("rb") as file:
        for at, content in data.items():
            assert os.pread(file.fileno(), 1, at) == content


def test_a_clone_replaces_nothing_and_follows_no_link(tmp_path: Path) -> None:
    """Nor does it take a directory or a pipe for a file, or wait for one."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"source")
    target.write_bytes(b"target")
    with pytest.raises(FileExistsError):
        clone_file(source, target)
    assert target.read_bytes() == b"target"
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(source)
    os.mkfifo(pipe)
    for odd, word in ((link, "symbolic link"), (pipe, "regular"), (tmp_path, "regular")):
        with pytest.raises(OSError, match=word):
            clone_file(odd, tmp_path / "new")
        with pytest.raises(OSError, match=word), open_regular(odd):
            pass
    assert not (tmp_path / "new").exists()


def test_a_copy_that_is_ended_leaves_nothing(tmp_path: Path, elsewhere: Path) -> None:
    """Whatever the progress raises; the same for a source that changes under the copy."""
    source = elsewhere / "source"
    source.write_bytes(bytes(2 * MIB))

    def end(done: int, total: int) -> None:
        raise KeyboardInterrupt

    def change(done: int, total: int) -> None:
        with source.open("ab") as file:
            file.write(b"more")

    with pytest.raises(KeyboardInterrupt):
        clone_file(source, tmp_path / "target", end)
    with pytest.raises(OSError, match="changed while it was copied"):
        clone_file(source, tmp_path / "target", change)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_is_the_rootfs_and_then_zeros(tmp_path: Path) -> None:
    """As large as it was asked for, private, and without leftovers."""
    rootfs = tmp_path / "rootfs"
    rootfs.write_bytes(content := os.urandom(MIB))
    rootfs.chmod(0o444)
    path = tmp_path / "disks" / f"{VM}.img"
    make_disk(path, 3 * MIB, rootfs)
    assert path.read_bytes() == content + bytes(2 * MIB)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_a_disk_without_rootfs_is_empty_and_takes_no_space(tmp_path: Path) -> None:
    """A sparse file."""
    path = tmp_path / "disks" / "d.img"
    make_disk(path, 256 * MIB)
    assert path.stat().st_size == 256 * MIB
    assert allocated(path) < MIB


def test_a_disk_that_is_there_is_kept(tmp_path: Path) -> None:
    """A redelivered command makes no second one; one of another size is of a half done try."""
    path = tmp_path / "d.img"
    make_disk(path, MIB)
    path.write_bytes(b"x" * MIB)
    make_disk(path, MIB)
    assert path.read_bytes() == b"x" * MIB
    path.write_bytes(b"")
    make_disk(path, MIB)
    assert path.read_bytes() == bytes(MIB)


def test_a_rootfs_that_does_not_fit_makes_no_disk(tmp_path: Path) -> None:
    """It is never cut off."""
    rootfs = tmp_path / "rootfs"
    rootfs.write_bytes(bytes(MIB + 1))
    with pytest.raises(OSError, match="larger than the disk"):
        make_disk(tmp_path / "disks" / "d.img", MIB, rootfs)
    assert list((tmp_path / "disks").iterdir()) == []


def test_an_agent_that_is_killed_leaves_no_half_disk(tmp_path: Path, elsewhere: Path) -> None:
    """What it leaves is no disk; the next try makes a whole one, and a deletion removes all."""
    rootfs = elsewhere / "rootfs"
    rootfs.write_bytes(os.urandom(8 * MIB))
    path = tmp_path / "disks" / "d.img"

    def killed() -> None:
        arguments = [str(path), str(8 * MIB), str(rootfs)]
        done = subprocess.run(
            [sys.executable, "-c", KILLED_AFTER_3_MIB, *arguments],
            cwd=Path(__file__).resolve().parents[3], timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL
        assert not path.exists()
        assert len(list(path.parent.iterdir())) == 1

    killed()
    make_disk(path, 8 * MIB, rootfs)
    assert path.read_bytes() == rootfs.read_bytes()
    assert list(path.parent.iterdir()) == [path]
    remove_disk(path)
    killed()
    remove_disk(path)
    remove_disk(path)
    assert list(path.parent.iterdir()) == []


async def test_disks_are_made_beside_the_loop(tmp_path: Path) -> None:
    """More at once than may be copied at once: all come out right."""
    rootfs = tmp_path / "rootfs"
    rootfs.write_bytes(content := os.urandom(MIB))
    disks = Disks()
    paths = [tmp_path / "disks" / f"{n}.img" for n in range(6)]
    await asyncio.gather(*(disks.make(path, MIB, rootfs) for path in paths))
    assert {path.read_bytes() for path in paths} == {content}
    await disks.make(tmp_path / "disks" / "empty.img", MIB)
    assert (tmp_path / "disks" / "empty.img").read_bytes() == bytes(MIB)


async def test_long_work_ends_when_it_is_cancelled() -> None:
    """An agent that is to stop does not wait until gigabytes are copied."""
    begun, ended = threading.Event(), threading.Event()

    def work(go_on: object) -> None:
        assert callable(go_on)
        begun.set()
        try:
            while True:
                go_on(1, 2)
        finally:
            ended.set()

    task = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(ended.wait, 10)


@pytest.mark.parametrize(
    ("asked_mib", "rootfs_bytes", "held_mib", "size_bytes"),
    [
        (0, 0, 0, 0),
        (5, 0, 5, 5 * MIB),
        (0, 3 * MIB, 3, 3 * MIB),
        (0, 3 * MIB + 512, 4, 3 * MIB + 512),
        (0, 1, 1, 512),
        (4, 3 * MIB + 512, 4, 4 * MIB),
        (3, 3 * MIB, 3, 3 * MIB),
    ],
)
def test_the_size_of_a_disk(
    asked_mib: int, rootfs_bytes: int, held_mib: int, size_bytes: int
) -> None:
    """As asked for, else just the rootfs, in whole sectors; counted in whole MiB."""
    spec = VmSpec(image="web", disk_mib=asked_mib)
    assert with_disk(spec, rootfs_bytes).disk_mib == held_mib
    assert disk_bytes(spec, rootfs_bytes) == size_bytes


def test_a_disk_that_is_too_small_for_the_rootfs_is_refused() -> None:
    """The least size is said."""
    with pytest.raises(RefusedError, match="at least 4") as refused:
        with_disk(VmSpec(image="web", disk_mib=3), 3 * MIB + 1)
    assert refused.value.info.code is ErrorCode.BAD_REQUEST


def test_a_replacement_that_was_cut_off_goes_with_the_disk(tmp_path: Path) -> None:
    """The disk is the old one or the new one, and what a killed agent left is removed with it."""
    disk, other = tmp_path / "vm.img", tmp_path / "other"
    disk.write_bytes(b"old")
    other.write_bytes(b"new")
    (tmp_path / ".new-vm.img").write_bytes(b"ne")
    replace_disk(disk, other)
    assert disk.read_bytes() == b"new"
    (tmp_path / ".new-vm.img").write_bytes(b"ne")
    with pytest.raises(OSError, match="missing"):
        replace_disk(disk, tmp_path / "missing")
    assert disk.read_bytes() == b"new"
    (tmp_path / ".new-vm.img").write_bytes(b"ne")
    remove_disk(disk)
    assert list(tmp_path.iterdir()) == [other]
