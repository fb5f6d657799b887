"""Images are named by tokens, checked by digest, and told only what they allow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vm_agent.images import Image, ImageError, ImageStore, render_kernel_args


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """A file to import."""
    path = tmp_path / "vmlinux"
    path.write_bytes(b"\x7fELF kernel")
    return path


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """An empty store."""
    return ImageStore(tmp_path / "images")


def test_an_image_that_was_added_can_be_opened(store: ImageStore, kernel: Path) -> None:
    """In another agent too; its files are copies."""
    assert store.names() == []
    added = store.add("tiny", kernel, allowed_args=("spin", "blkw"), initrd_path=kernel)
    assert store.names() == ["tiny"]
    assert store.open("tiny") == added
    assert added.kernel.read_bytes() == kernel.read_bytes()
    assert added.initrd is not None
    assert not added.kernel.samefile(kernel)
    assert added.manifest.allowed_args == ("blkw", "spin")


def test_adding_again_replaces(store: ImageStore, kernel: Path) -> None:
    """Whole, and without leftovers."""
    store.add("tiny", kernel)
    kernel.write_bytes(b"\x7fELF other")
    assert store.add("tiny", kernel).kernel.read_bytes() == b"\x7fELF other"
    assert [path.name for path in kernel.parent.joinpath("images").iterdir()] == ["tiny"]


@pytest.mark.parametrize("name", ["../etc", "a/b", "", ".", "A", "a\n", "a" * 64, "a.b", "-a"])
def test_no_name_leads_out_of_the_store(store: ImageStore, kernel: Path, name: str) -> None:
    """Path tricks are no ids."""
    with pytest.raises(ImageError):
        store.open(name)
    with pytest.raises(ImageError):
        store.add(name, kernel)


@given(st.text(max_size=40))
def test_an_unknown_name_is_an_image_error(name: str) -> None:
    """Whatever it is."""
    with pytest.raises(ImageError):
        ImageStore(Path("/nonexistent")).open(name)


@pytest.mark.parametrize("fault", ["kernel", "path", "json", "missing", "machine", "unknown"])
def test_a_damaged_image_is_refused(store: ImageStore, kernel: Path, fault: str) -> None:
    """Another kernel, a path out of the directory, broken JSON, another architecture."""
    directory = store.add("tiny", kernel).kernel.parent
    manifest = json.loads((directory / "image.json").read_text())
    match fault:
        case "kernel":
            (directory / "kernel").unlink()
            (directory / "kernel").write_bytes(b"evil")
        case "missing":
            (directory / "kernel").unlink()
        case "path":
            manifest["kernel"] = "../../vmlinux"
        case "machine":
            manifest["architecture"] = "pdp11"
        case "unknown":
            manifest["extra"] = 1
    text = "{" if fault == "json" else json.dumps(manifest)
    (directory / "image.json").write_text(text)
    with pytest.raises(ImageError, match="tiny"):
        ImageStore(directory.parent).open("tiny")


def test_a_missing_kernel_adds_nothing(store: ImageStore, kernel: Path) -> None:
    """Whole or not at all."""
    with pytest.raises(ImageError, match="cannot be added"):
        store.add("tiny", kernel.with_name("missing"))
    assert store.names() == []
    assert not kernel.with_name("images").exists()


@pytest.fixture
def image(store: ImageStore, kernel: Path) -> Image:
    """An image with arguments of its own."""
    return store.add(
        "linux",
        kernel,
        allowed_args=("quiet", "loop"),
        driver_args={"qemu": "console=ttyS0  acpi", "*": "reboot=k"},
    )


def test_kernel_arguments_are_the_images_then_the_specs(image: Image) -> None:
    """The driver's own where there are some."""
    assert render_kernel_args(image, "qemu", {"loop": "3"}) == "console=ttyS0 acpi loop=3"
    assert render_kernel_args(image, "firecracker", {}) == "reboot=k"


def test_an_argument_that_is_not_allowed_is_refused(image: Image) -> None:
    """The error names it, and what there is."""
    with pytest.raises(ImageError, match=r"'init'.*loop, quiet"):
        render_kernel_args(image, "qemu", {"loop": "1", "init": "sh"})
