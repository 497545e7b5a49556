"""Operators of R models of one architecture: shape (R, n, n), products of all replicas at once."""
