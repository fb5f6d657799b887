"""The command line: what an operator, a customer or a script holds in the hand."""

from decisec.cli.app import main

__all__ = ["main"]
