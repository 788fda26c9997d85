"""What torch gets wrong, or does not show, where it differentiates or batches, and what is done instead."""
