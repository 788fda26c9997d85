"""The rules of JAX's transformations."""
