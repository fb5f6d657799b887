"""Sizes of VMs that have a name. The one place where they stand; docs/cli.md is checked by it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class Template(StrEnum):
    """What `decisec vm create --template` knows."""

    MINIMAL = "minimal"
    STANDARD = "standard"
    HIGH_CPU = "high-cpu"
    HIGH_MEMORY = "high-memory"
    DEVELOPMENT = "development"


PURPOSES: Mapping[Template, str] = {
    Template.MINIMAL: "the smallest that is of use: a probe, a test, one small process",
    Template.STANDARD: "a service",
    Template.HIGH_CPU: "builds, encoding, anything that computes",
    Template.HIGH_MEMORY: "databases and caches",
    Template.DEVELOPMENT: "a machine to try things on",
}

FIELDS: Mapping[Template, Mapping[str, Any]] = {
    Template.MINIMAL: {"vcpus": 1, "memory_mib": 128, "disk_mib": 0},
    Template.STANDARD: {
        "vcpus": 2, "memory_mib": 2048, "disk_mib": 10_240, "restart": "on-failure",
    },
    Template.HIGH_CPU: {
        "vcpus": 8, "memory_mib": 4096, "disk_mib": 10_240, "restart": "on-failure",
    },
    Template.HIGH_MEMORY: {
        "vcpus": 4, "memory_mib": 32_768, "disk_mib": 20_480, "restart": "on-failure",
    },
    Template.DEVELOPMENT: {"vcpus": 2, "memory_mib": 1024, "disk_mib": 4096, "boot": True},
}  # fmt: skip
"""What each says of a create request, by its fields; each fits many times into a usual quota."""
