"""What a VM asks of the host that it is to run on."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

LabelName = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_-]{0,62}$(?!\n)")]
LabelValue = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{0,63}$(?!\n)")]


class Apart(StrEnum):
    """How much VMs want to be on different hosts.

    Attributes:
        PREFERRED: Where that is possible.
        REQUIRED: Or not be made.
    """

    PREFERRED = "preferred"
    REQUIRED = "required"


MAX_HOST_LABELS = 8

Arch = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_]{0,16}$(?!\n)")]
"""A processor architecture as `uname -m` names it: `x86_64`, `aarch64`; empty for any."""

PlacedWord = Annotated[str, msgspec.Meta(max_length=64)]
"""Why a host was chosen, such as `spread+apart`."""


class PlacementWishes(msgspec.Struct, frozen=True, kw_only=True):
    """What a VM asks of its host.

    Attributes:
        host_labels: Labels that the host's operator has given it.
        driver: The hypervisor driver; empty for any.
        arch: The host's architecture; empty for any.
        apart_by: One of the VM's own labels: VMs of this customer that have the same value of it
            go to different hosts. Empty for no such wish.
        apart: Whether they must, or should.
    """

    host_labels: Annotated[
        dict[LabelName, LabelValue], msgspec.Meta(max_length=MAX_HOST_LABELS)
    ] = msgspec.field(default_factory=dict)
    driver: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]{0,32}$(?!\n)")] = ""
    arch: Arch = ""
    apart_by: Annotated[str, msgspec.Meta(pattern=r"^([a-z][a-z0-9_-]{0,62})?$(?!\n)")] = ""
    apart: Apart = Apart.PREFERRED
