"""Symbols to bytes and back: frozen integer tables, interleaved rANS, one container file (docs/format.md)."""
