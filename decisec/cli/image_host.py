"""The host that an image command works on: where its agent keeps images, and which VMs use them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from decisec.cli.exits import CommandError, Exit

if TYPE_CHECKING:
    from vm_agent.images import ImageStore

ImageDirectory = Annotated[
    str,
    typer.Option(
        "--image-dir",
        envvar="DECISEC_AGENT_IMAGE_DIR",
        help="The store; by default `images` in the agent's data directory.",
        show_default=False,
    ),
]
DataDirectory = Annotated[
    str,
    typer.Option(
        "--data-dir",
        envvar="DECISEC_AGENT_DATA_DIR",
        help="The agent's data directory; by default as the agent has it: /var/lib/decisec/agent.",
        show_default=False,
    ),
]


class Users(NamedTuple):
    """Which VMs use which images.

    Attributes:
        of_image: Ids of VMs by the name of their image.
        unreadable: Records that do not say.
    """

    of_image: dict[str, list[str]]
    unreadable: list[Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHost:
    """A host's image store and the agent's data beside it.

    Attributes:
        probe_image: The image that the agent needs for itself.
    """

    store: ImageStore
    directory: Path
    data_dir: Path
    probe_image: str

    def require(self, name: str) -> None:
        """Make sure that there is an image, damaged or not.

        Raises:
            CommandError: There is none.
        """
        if name not in self.store.folders():
            raise CommandError(
                f"there is no image {name!r} in {self.directory}; see `decisec image ls`",
                Exit.NOT_FOUND,
                "not_found",
            )

    def make_data_dir(self) -> None:
        """Make the data directory as the agent does, if images go there: nobody else's business."""
        if self.directory.is_relative_to(self.data_dir):
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)

    def users(self) -> Users:
        """Which VMs use which images, by the records that the agent keeps."""
        from schemas.errors import MalformedMessageError
        from schemas.vms import VmState
        from vm_agent.store import decode_record

        found = Users({}, [])
        for path in sorted((self.data_dir / "vms").glob("*.json")):
            try:
                record = decode_record(path.read_bytes())
            except FileNotFoundError:
                continue  # the VM was deleted just now
            except MalformedMessageError:
                found.unreadable.append(path)
                continue
            if record.state is not VmState.DELETED:
                found.of_image.setdefault(record.spec.image, []).append(str(record.vm_id))
        return found


def image_host(image_dir: str, data_dir: str) -> ImageHost:
    """The host as its agent sees it: options, then variables, then the file of DECISEC_CONFIG.

    Raises:
        SettingsError: The agent's settings are wrong.
    """
    import msgspec

    from runtime.settings import load
    from vm_agent.images import ImageStore
    from vm_agent.settings import AgentSettings

    # Images are the same whatever the host is called, so nobody need say it here.
    env = {"DECISEC_AGENT_HOST_ID": "this-host", **os.environ}
    settings = load(AgentSettings, "agent", env=env)
    given = {"image_dir": image_dir, "data_dir": data_dir}
    settings = msgspec.structs.replace(settings, **{k: v for k, v in given.items() if v})
    return ImageHost(
        store=ImageStore(settings.images),
        directory=settings.images,
        data_dir=Path(settings.data_dir),
        probe_image=settings.probe_image,
    )


@contextmanager
def told() -> Iterator[None]:
    """Turn what goes wrong with images into a sentence and an exit code."""
    from vm_agent.image_content import reason
    from vm_agent.images import ImageError, ImageExistsError, ImageInputError, UnknownImageError

    try:
        yield
    except ImageExistsError as error:
        raise CommandError(
            f"{error}; to replace it, say --replace", Exit.FAILED, "image_exists"
        ) from error
    except ImageInputError as error:
        raise CommandError(str(error), Exit.USAGE, "bad_image") from error
    except UnknownImageError as error:
        raise CommandError(str(error), Exit.NOT_FOUND, "not_found") from error
    except ImageError as error:
        raise CommandError(str(error), Exit.FAILED, "failed") from error
    except OSError as error:
        raise CommandError(reason(error), Exit.FAILED, "failed") from error
