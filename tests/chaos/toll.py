"""What a siege has come to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Toll:
    """What a siege has come to.

    Attributes:
        kills: How often the agent died.
        leaks: Things without an owner, or missing, after a round.
        lost_vms: VMs that were not touched and are not the same process any more.
        lost_commands: Commands without the result that they must have.
        holes: Frames that got where they must not, or did not get where they must.
        bytes_exact: Incarnations that were billed just what their guests said.
        bytes_wrong: Those that were not.
        cpu_exact: VMs whose CPU time was billed as the kernel counted it, over all deaths.
        steps: Named steps at which the agent died.
        problems: All of it in words.
    """

    kills: int = 0
    leaks: int = 0
    lost_vms: int = 0
    lost_commands: int = 0
    holes: int = 0
    bytes_exact: int = 0
    bytes_wrong: int = 0
    cpu_exact: int = 0
    steps: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing was lost and nothing leaked."""
        return not self.problems

    def report(self) -> dict[str, Any]:
        """For a file."""
        return {**asdict(self), "bytes_exact": self.bytes_wrong == 0 and self.bytes_exact > 0,
                "incarnations_exact": self.bytes_exact}  # fmt: skip
