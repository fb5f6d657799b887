"""The host's image store: what a VM's spec may name, and what its guest's kernel may be told.

`<store>/<name>/image.json` describes an image, its files lie beside it. Callers name images by
token only; paths come out of here and never go in from a customer. An image is replaced in one
step, and no symbolic link in the store is followed.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from schemas.errors import InvalidIdError
from schemas.ids import token
from vm_agent.disks import sync
from vm_agent.image_content import (
    Progress,
    fill,
    problem_of,
    read_manifest,
    reason,
    stamp_of,
)
from vm_agent.image_files import (
    FOLDER_MODE,
    Stamp,
    clear_unfinished,
    is_folder,
    locked,
    open_folder,
    put_in_place,
    work_folder,
)
from vm_agent.image_manifest import (
    MANIFEST,
    ImageError,
    ImageExistsError,
    ImageInputError,
    Manifest,
    UnknownImageError,
    draft,
)

__all__ = [
    "Image",
    "ImageError",
    "ImageExistsError",
    "ImageInputError",
    "ImageStore",
    "Manifest",
    "Progress",
    "UnknownImageError",
    "render_kernel_args",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image: its files and what is said of them."""

    name: str
    kernel: Path
    initrd: Path | None
    rootfs: Path | None
    manifest: Manifest


class _Seen(NamedTuple):
    """A file that has been read.

    Attributes:
        sha256: The digest that it was to have.
        problem: What is wrong with it; empty if nothing is.
    """

    sha256: str | None
    stamp: Stamp
    problem: str


class ImageStore:
    """Images in one directory.

    A file's digest is checked when it is opened for the first time, and again when its inode, size
    or time of change is another one since. All calls block: make them off the event loop.

    Args:
        directory: Made when the first image is added.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._seen: dict[tuple[str, str], _Seen] = {}

    def names(self) -> list[str]:
        """The images that are there, in order. Reads the directory and no file."""
        return [name for name in self.folders() if (self._directory / name / MANIFEST).is_file()]

    def folders(self) -> list[str]:
        """Every directory that is an image or was one before it was damaged, in order."""
        try:
            entries = list(os.scandir(self._directory))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(
            entry.name
            for entry in entries
            if _is_token(entry.name) and entry.is_dir(follow_symlinks=False)
        )

    def open(self, name: str, progress: Progress | None = None, *, whole: bool = True) -> Image:
        """Look up an image that VMs of this host can use, its digests checked.

        Args:
            name: Which one.
            progress: Told how far the reading is, where files must be read.
            whole: Check the rootfs, too. A VM that has its own disk boots without it.

        Raises:
            ImageError: There is no such image, its files are not what its manifest says, or it
                is made for another architecture.
        """

        def read(folder: int) -> Image:
            manifest = read_manifest(name, folder)
            for file in manifest.files(whole=whole):
                seen = self._known(name, manifest, file, folder)
                if seen is None:
                    seen = self._read_file(name, manifest, file, folder, progress)
                if seen.problem:
                    raise ImageError(seen.problem)
            return self._usable(name, manifest)

        return self._in_folder(name, read)

    def recall(self, name: str, *, whole: bool = True) -> Image | None:
        """What `open` would return, or raise, without reading files; None where it must read."""

        def read(folder: int) -> Image | None:
            manifest = read_manifest(name, folder)
            for file in manifest.files(whole=whole):
                seen = self._known(name, manifest, file, folder)
                if seen is None:
                    return None
                if seen.problem:
                    raise ImageError(seen.problem)
            return self._usable(name, manifest)

        return self._in_folder(name, read)

    def look(self, name: str) -> Image:
        """What an image's manifest says; its files are not read.

        Raises:
            ImageError: There is no such image, or its manifest is damaged.
        """
        return self._image(name, self._in_folder(name, lambda folder: read_manifest(name, folder)))

    def verify(self, name: str, progress: Progress | None = None) -> None:
        """Read all files of an image again, and check their digests.

        Raises:
            ImageError: There is no such image, or its files are not what its manifest says.
        """

        def read(folder: int) -> None:
            manifest = read_manifest(name, folder)
            for file in manifest.files():
                seen = self._read_file(name, manifest, file, folder, progress)
                if seen.problem:
                    raise ImageError(seen.problem)

        self._in_folder(name, read)

    def add(
        self,
        name: str,
        kernel_path: Path,
        *,
        allowed_args: Iterable[str] = (),
        initrd_path: Path | None = None,
        rootfs_path: Path | None = None,
        driver_args: Mapping[str, str] | None = None,
        architecture: str = "x86_64",
        description: str = "",
        replace: bool = True,
        progress: Progress | None = None,
        waiting: Callable[[], None] | None = None,
    ) -> Image:
        """Copy an image's files into the store; whole or not at all, and durably.

        Where an image of that name is replaced, VMs that run keep the files that they have open,
        and VMs that exist keep their disks. What a killed import has left is removed first.

        Args:
            name: A token.
            kernel_path: The kernel; a symbolic link is followed, as for the other files.
            allowed_args: Names of the kernel arguments that a spec may set.
            initrd_path: The initial RAM disk.
            rootfs_path: The root file system, a raw disk.
            driver_args: Arguments that the guest always gets, by driver name or `*`.
            architecture: As `uname -m` says it.
            description: For people.
            replace: Whether an image of that name may be replaced.
            progress: Told how far the copies are.
            waiting: Called if another import must be waited for.

        Raises:
            ImageInputError: The name is no token, a file is missing, an argument's name is none,
                the image exists, this host has another architecture.
            ImageError: The store cannot be written to.
        """
        target = self._path(name)
        sources = {"kernel": kernel_path, "initrd": initrd_path, "rootfs": rootfs_path}
        try:
            given = {part: p.resolve(strict=True) for part, p in sources.items() if p is not None}
        except (OSError, RuntimeError) as error:
            raise ImageInputError(f"image {name!r} cannot be added: {reason(error)}") from error
        if architecture != platform.machine():
            raise ImageInputError(
                f"image {name!r} would be for {architecture}, and this host is "
                f"{platform.machine()}: import it on a host of that architecture"
            )
        manifest = draft(
            architecture=architecture,
            allowed_args=sorted(set(allowed_args)),
            driver_args=dict(driver_args or {}),
            description=description,
        )
        try:
            self._make_directory()
            with locked(self._directory, waiting):
                clear_unfinished(self._directory)
                if not replace and os.path.lexists(target):
                    raise ImageExistsError(f"there is an image {name!r} already")
                with work_folder(self._directory) as work:
                    manifest = fill(work, given, manifest, progress)
                    put_in_place(work, target)
        except OSError as error:
            raise ImageError(f"image {name!r} cannot be added: {reason(error)}") from error
        return self._image(name, manifest)

    def remove(self, name: str) -> None:
        """Remove an image, damaged or not, in one step. VMs that run keep what they have open.

        Raises:
            UnknownImageError: There is none.
            ImageError: The store cannot be written to.
        """
        target = self._path(name)
        try:
            if not os.path.lexists(target):
                raise UnknownImageError(f"there is no image {name!r} on this host")
            with locked(self._directory):
                clear_unfinished(self._directory)
                with work_folder(self._directory) as work:
                    target.rename(work / name)
                    sync(self._directory)
        except OSError as error:
            raise ImageError(f"image {name!r} cannot be removed: {reason(error)}") from error

    def tidy(self) -> int:
        """Remove what killed imports have left, unless one is at work; how many there were.

        Raises:
            ImageError: The store cannot be written to.
        """

        def leave() -> None:
            raise BlockingIOError

        try:
            with locked(self._directory, leave):
                return clear_unfinished(self._directory)
        except (BlockingIOError, FileNotFoundError):
            return 0
        except OSError as error:
            raise ImageError(f"{self._directory} cannot be tidied: {reason(error)}") from error

    def _path(self, name: str) -> Path:
        try:
            return self._directory / token(name)
        except InvalidIdError as error:
            raise ImageInputError(str(error)) from error

    def _make_directory(self) -> None:
        if not self._directory.is_dir():
            self._directory.mkdir(parents=True, exist_ok=True)
            self._directory.chmod(FOLDER_MODE)
            sync(self._directory.parent)

    def _image(self, name: str, manifest: Manifest) -> Image:
        folder = self._directory / name
        return Image(
            name=name,
            kernel=folder / manifest.kernel,
            initrd=folder / manifest.initrd if manifest.initrd else None,
            rootfs=folder / manifest.rootfs if manifest.rootfs else None,
            manifest=manifest,
        )

    def _usable(self, name: str, manifest: Manifest) -> Image:
        if manifest.architecture != platform.machine():
            raise ImageError(f"image {name!r} is for {manifest.architecture}")
        return self._image(name, manifest)

    def _known(self, name: str, manifest: Manifest, file: str, folder: int) -> _Seen | None:
        """What an earlier reading found of a file that has not changed since."""
        seen = self._seen.get((name, file))
        now = (manifest.files()[file], stamp_of(name, file, folder))
        return seen if seen is not None and (seen.sha256, seen.stamp) == now else None

    def _read_file(
        self, name: str, manifest: Manifest, file: str, folder: int, progress: Progress | None
    ) -> _Seen:
        # The stamp before the content: what is written meanwhile makes another one.
        stamp = stamp_of(name, file, folder)
        problem = problem_of(name, manifest, file, folder, progress)
        seen = self._seen[name, file] = _Seen(manifest.files()[file], stamp, problem)
        return seen

    def _in_folder(self, name: str, read: Callable[[int], T]) -> T:
        """What `read` finds in an image's directory; once more if that was replaced meanwhile."""
        path = self._path(name)
        while True:
            try:
                with open_folder(path) as folder:
                    try:
                        return read(folder)
                    except (OSError, ImageError):
                        if is_folder(path, folder):
                            raise
            except (FileNotFoundError, NotADirectoryError) as error:
                raise UnknownImageError(f"there is no image {name!r} on this host") from error
            except OSError as error:
                raise ImageError(f"image {name!r} cannot be read: {reason(error)}") from error


def render_kernel_args(image: Image, driver: str, spec_args: Mapping[str, str]) -> str:
    """The kernel command line: the image's own arguments for that driver, then the spec's.

    Raises:
        ImageError: The spec sets an argument that is not on the image's allow-list.
    """
    allowed = image.manifest.allowed_args
    for name in spec_args:
        if name not in allowed:
            known = ", ".join(allowed) or "none"
            raise ImageError(
                f"image {image.name!r} does not take the kernel argument {name!r}; "
                f"it takes: {known}"
            )
    fixed = image.manifest.driver_args
    own = fixed.get(driver, fixed.get("*", ""))
    return " ".join([*own.split(), *(f"{name}={value}" for name, value in spec_args.items())])


def _is_token(name: str) -> bool:
    try:
        token(name)
    except InvalidIdError:
        return False
    return True
