"""What a backward gets from its forward."""
