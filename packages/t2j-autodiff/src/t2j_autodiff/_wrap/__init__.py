"""What users hold: `torch2jax` and `module2jax` with derivatives and batches."""
