"""What users hold: `torch2jax`, `module2jax`, and the way of a call to the primitive."""
