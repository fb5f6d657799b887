"""The rules of a host's fabric as text of nft(8): what stands once, and what a VM adds to it."""

from vm_agent.network.rules.base import TABLES, render
from vm_agent.network.rules.entries import Entry, entries

__all__ = ["TABLES", "Entry", "entries", "render"]
