"""Engines: ways to multiply by the Jacobian J, its transpose and the Hessian."""
