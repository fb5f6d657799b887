"""A stand-in for Firecracker that needs no KVM: one process per VM, with made-up counters.

It speaks the part of Firecracker's API that the driver uses, with the vendor's status codes and
words, and writes the same metrics file. Its counters are a pure function of the machine's
configuration and of how long it has run, so they can be checked. It can be told to go wrong.

A thousand of these run on one host. So the process sleeps while nobody asks, and imports as little
as it can: `typing`, `dataclasses`, `socket` and `json` each cost more than all that is written
here. `docs/simulator.md` has the figures.
"""

from vm_agent.simulator.machine import VERSION

__all__ = ["VERSION"]
