"""`python -m vm_agent` runs the agent; `python -m vm_agent reap --data-dir DIR` ends its VMs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vm_agent.reap import reap


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vm_agent", description="The agent of one host; settings in DECISEC_*."
    )
    commands = parser.add_subparsers(dest="command")
    reaping = commands.add_parser("reap", help="end every VM of an agent that is gone for good")
    reaping.add_argument("--data-dir", type=Path, required=True, help="the agent's data directory")
    return parser.parse_args(argv)


def _run() -> int:
    # Reaping must be quick and needs none of this.
    from runtime.service import run
    from vm_agent.app import main
    from vm_agent.settings import AgentSettings

    return run("agent", AgentSettings, main)


if __name__ == "__main__":
    given = _arguments(sys.argv[1:])
    sys.exit(reap(given.data_dir) if given.command == "reap" else _run())
