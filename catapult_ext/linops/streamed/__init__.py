"""Operators over data in batches and over processes."""
