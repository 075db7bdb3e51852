"""`PYTHONPATH=tests python -m kills --help`."""

from kills.program import main

if __name__ == "__main__":
    raise SystemExit(main())
