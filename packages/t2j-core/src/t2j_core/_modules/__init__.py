"""Copies of an `nn.Module` that run with the variables of one call and leave no trace."""
