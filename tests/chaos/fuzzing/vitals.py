"""How an agent is: memory, descriptors, threads, and what its own counters say."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import httpx

_SAMPLE = re.compile(r"^(\w+)\{([^}]*)\} ([0-9.e+]+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Vitals:
    """Of one process, at one moment."""

    rss_kib: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Vitals:
        """As the kernel has them."""
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        return cls(
            rss_kib=int(fields["VmRSS"].split()[0]),
            descriptors=len(list(Path(f"/proc/{pid}/fd").iterdir())),
            threads=int(fields["Threads"]),
        )


@dataclass(slots=True)
class Counted:
    """What an agent counted, over all its runs."""

    refused: Counter[tuple[str, str]]
    commands: Counter[tuple[str, str]]
    answered: int = 0
    redelivered: int = 0
    lost: int = 0

    @classmethod
    def nothing(cls) -> Counted:
        """Before the first run."""
        return cls(Counter(), Counter())

    async def add(self, port: int) -> None:
        """Add what the run that listens there has counted."""
        async with httpx.AsyncClient() as http:
            text = (await http.get(f"http://127.0.0.1:{port}/metrics")).text
        for name, labels, value in _SAMPLE.findall(text):
            found = dict(_LABEL.findall(labels))
            count = int(float(value))
            match name:
                case "decisec_agent_refused_total":
                    self.refused[found["door"], found["reason"]] += count
                case "decisec_agent_commands_total":
                    self.commands[found["verb"], found["outcome"]] += count
                case "decisec_agent_questions_total":
                    self.answered += count
                case "decisec_agent_commands_redelivered_total":
                    self.redelivered += count
                case "decisec_agent_audit_entries_lost_total":
                    self.lost += count
