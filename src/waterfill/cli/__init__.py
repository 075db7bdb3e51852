"""The command line: text to one library call each."""

from waterfill.cli.commands import app
from waterfill.cli.entry import main

__all__ = ["app", "main"]
