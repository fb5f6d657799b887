"""What operators do with streams: replay them, watch them, see gaps, take care of rejects.

It promises: a replay changes no bill, whatever range is replayed how often; nothing is sent or
removed without an entry in the audit stream before and after. A program calls `replay`, `tail` and
`gaps`; see `docs/replay.md`.
"""

from decisec.streams.calls import Replayed, gaps, replay, tail

__all__ = ["Replayed", "gaps", "replay", "tail"]
