"""`python -m decisec`: the same as the command `decisec`."""

from __future__ import annotations

import sys

from decisec.cli import main

if __name__ == "__main__":
    sys.exit(main())
