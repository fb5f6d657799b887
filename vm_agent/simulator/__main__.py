"""`python vm_agent/simulator --api-sock PATH --id ID`: one pretended VM."""

import sys

from vm_agent.simulator.program import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
