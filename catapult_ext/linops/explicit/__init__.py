"""Kernels written out: in memory, in tiles, in a file."""
