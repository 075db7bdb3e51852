"""Whole commands that are killed: before every change of the file system, and at random moments."""
