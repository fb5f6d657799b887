"""`python -m decisec`: the same as the command `decisec`."""

from __future__ import annotations

import sys

_INTERRUPTED = 130

if __name__ == "__main__":
    try:
        # Here, because Ctrl-C may come while the libraries load.
        from decisec.cli import main

        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
