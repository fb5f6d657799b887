"""What has happened so far in a storm."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.load.flood.latencies import Latencies

VERBS = ("create", "boot", "shutdown", "delete")
_SHOWN = 10


@dataclass(slots=True)
class Commands:
    """Commands of one verb.

    Attributes:
        accepted: The deployment has said that it does them.
        succeeded: They are done.
        failed: The deployment has tried and says why not, by code.
        refused: Answers that it is not done, by code, the ones after which it was asked again too.
        given_up: Commands that were refused for good, by code.
        unanswered: Nobody knows what became of them.
        lost: Accepted, and no end came in time; or nobody began them before their deadline.
        accepted_in: From the moment at which a command was due to its acceptance.
        done_in: From the same moment to its end.
    """

    accepted: int = 0
    succeeded: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    given_up: Counter[str] = field(default_factory=Counter)
    unanswered: int = 0
    lost: int = 0
    accepted_in: Latencies = field(default_factory=Latencies)
    done_in: Latencies = field(default_factory=Latencies)

    def report(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "accepted": self.accepted,
            "succeeded": self.succeeded,
            "failed": dict(self.failed),
            "refused": dict(self.refused),
            "given_up": dict(self.given_up),
            "unanswered": self.unanswered,
            "lost": self.lost,
            "accepted_ms": self.accepted_in.report(),
            "done_ms": self.done_in.report(),
        }


@dataclass(slots=True)
class Tally:
    """A whole storm.

    Attributes:
        begun: Lives of which the first command was sent.
        over: Lives that have come to an end, good or bad.
        whole: Lives all of whose commands were carried out.
        vanished: VMs that were gone though nobody here had deleted them.
        behind_s: How late, by the plan, a life began at most.
        problems: The first few things that must not happen, in words.
    """

    begun: int = 0
    over: int = 0
    whole: int = 0
    vanished: int = 0
    behind_s: float = 0.0
    commands: dict[str, Commands] = field(
        default_factory=lambda: {verb: Commands() for verb in VERBS}
    )
    problems: list[str] = field(default_factory=list)

    def note(self, problem: str) -> None:
        """Keep it if it is one of the first."""
        if len(self.problems) < _SHOWN:
            self.problems.append(problem)

    def total(self, what: str) -> int:
        """Over all verbs."""
        values = [getattr(commands, what) for commands in self.commands.values()]
        return sum(v.total() if isinstance(v, Counter) else v for v in values)
