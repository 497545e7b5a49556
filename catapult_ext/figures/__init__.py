"""Every picture of the package: one palette, one style, and matplotlib on demand."""
