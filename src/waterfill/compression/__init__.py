"""The walk: a trained network in, a small file or directory out."""
