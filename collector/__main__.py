"""`python -m collector`."""

from __future__ import annotations

import sys

from collector.app import main
from collector.settings import CollectorSettings
from runtime.service import run

if __name__ == "__main__":
    sys.exit(run("collector", CollectorSettings, main))
