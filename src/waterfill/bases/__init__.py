"""Orthonormal bases in which weights depend on each other less: rotations of two coordinates, one after the other."""
