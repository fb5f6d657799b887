"""`python -m batcher`."""

from __future__ import annotations

import sys

from batcher.app import main
from batcher.settings import BatcherSettings
from runtime.service import run

if __name__ == "__main__":
    sys.exit(run("batcher", BatcherSettings, main))
