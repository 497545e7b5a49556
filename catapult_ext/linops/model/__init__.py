"""A module held at fixed parameters and inputs: its state, its policies, its memory."""
