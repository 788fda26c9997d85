"""What needs neither a signature nor a version of JAX or torch: errors, switches, dtypes, bounded tables."""
