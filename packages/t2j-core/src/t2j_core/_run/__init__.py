"""What runs inside XLA's call: the torch function, its operands and results, and what goes wrong with them."""
