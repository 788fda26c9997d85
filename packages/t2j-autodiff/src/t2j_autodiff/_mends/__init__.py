"""What torch gets wrong, or does not show, where it differentiates or batches; and how it is done otherwise."""
