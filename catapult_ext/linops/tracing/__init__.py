"""Reading a forward pass: chains of dense layers, tangent programs, uses of parameters."""
