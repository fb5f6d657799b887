"""Plans as command lines, and reports as files: what both floods do alike."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tests.load.flood.bounds import option


def add_options(parser: argparse.ArgumentParser, plan: type[Any], words: Mapping[str, str]) -> None:
    """An option for each field of a plan, with its default."""
    for field in fields(plan):
        if field.type == "bool":
            parser.add_argument(option(field.name), action="store_true", help=words[field.name])
        else:
            parser.add_argument(
                option(field.name), type=type(field.default), default=field.default,
                help=f"{words[field.name]} (default: {field.default})",
            )  # fmt: skip


def chosen(plan: type[Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """What the options say of a plan's fields."""
    return {field.name: getattr(arguments, field.name) for field in fields(plan)}


def hand_over(report: Mapping[str, Any], file: Path | None) -> None:
    """The report to stdout, and to a file if one is named."""
    text = json.dumps(report, indent=2) + "\n"
    if file is not None:
        file.write_text(text)
    sys.stdout.write(text)
    sys.stdout.flush()
