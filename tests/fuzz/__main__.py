"""`PYTHONPATH=tests:tests/twins python -m fuzz --help`."""

from fuzz.program import main

if __name__ == "__main__":
    raise SystemExit(main())
