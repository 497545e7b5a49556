"""Runs the PTX that nvcc makes of the CUDA code, on the CPU, in the tests of the operations."""
