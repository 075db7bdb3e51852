"""`python -m waterfill` is the command `waterfill`."""

from waterfill.cli import main

main()
