"""The JAX primitive, its rules, and its way into a compiled program."""
