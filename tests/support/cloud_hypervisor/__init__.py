"""A stand-in for Cloud Hypervisor v53, where there is no real one: a process per VM, no guest.

It keeps the vendor's states, status codes, error chains, events and snapshot files, so far as the
driver meets them (written from the vendor's sources at the tag v53.0), and is stricter in one
thing: a request body with a field that the project's own types do not know is refused. Its guest
behaves as the tiny guest of `tests/guest` would, with the same boot arguments and the same byte
counts, but does no I/O; `spin` and `tx` have no effect.
"""

VERSION = "53.0.0"
"""What the vendor's release v53.0 calls itself in `vmm.ping`."""
