"""The solvers for R operators or matrices at once, one file each as for a single one above."""
