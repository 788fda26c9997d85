"""What is installed, whether the versions fit together, and whether a call works."""
