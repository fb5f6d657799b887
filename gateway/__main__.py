"""`python -m gateway`."""

from __future__ import annotations

import sys

from gateway.app import main
from gateway.settings import GatewaySettings
from runtime.service import run

if __name__ == "__main__":
    sys.exit(run("gateway", GatewaySettings, main))
