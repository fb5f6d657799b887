"""`docs/network-packets.md`: the table of all packets that the suite sends, from its cases.

python -m tests.network.page
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from tests.network.cases import CASES
from tests.network.cases.base import Case
from tests.network.relay.guest import MOST_BYTES, can_be_sent

PAGE = Path(__file__).resolve().parents[2] / "docs" / "network-packets.md"

_HEAD = """# What is sent to the network's filter, and what becomes of it

`just test-network` sends these {cases} cases, {attacks} of them attacks, as frames from a real tap
(or from the uplink, where a case says so), and looks at other taps, the uplink and the host's own
sockets for what became of them. A drop has to be counted once, for the VM and the reason that the
table names; what passes has to arrive. The same attacks are sent where there is no filter, and at
least 60 % of them have to get through there: figures are in `.decisec/packet-suite.json` after a
run. What the rules promise is in [network-filter.md](network-filter.md).

{sent} of the cases, {sent_attacks} of them attacks, are sent once more by two guests of real VMs,
with the same judge: the test guest in a jailed Firecracker, and a stock Linux on QEMU, whose own
stack lives beside and answers. They are marked with ●. The others are about other VMs than the
first one, headers of virtio that a guest cannot write past its VMM's device, or frames of more than
{most} bytes.

This page is written by `just network-packets`; a test compares it with the cases.
"""


def render() -> str:
    """The page as it should be."""
    attacks = sum(case.attack for case in CASES)
    sent = [case for case in CASES if can_be_sent(case)]
    figures = {
        "cases": len(CASES),
        "attacks": attacks,
        "sent": len(sent),
        "sent_attacks": sum(case.attack for case in sent),
        "most": MOST_BYTES,
    }
    lines = [_HEAD.format(**figures)]
    for category, cases in groupby(CASES, key=lambda case: case.category):
        lines += [f"## {category}", "", "| packet | from | guests | outcome |", "|---|---|---|---|"]
        lines += [_row(case) for case in cases]
        lines.append("")
    return "\n".join(lines)


def _row(case: Case) -> str:
    times = max(step.times for step in case.steps)
    often = f", {times} times" if times > 1 else ""
    guests = "●" if can_be_sent(case) else ""
    return f"| {case.name} | {case.steps[-1].at}{often} | {guests} | {case.outcome} |"


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
