"""The readers in other languages against the package: run `PYTHONPATH=tests python -m decoders.differential`."""
