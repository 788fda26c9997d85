"""What is installed, whether it goes together, and whether it works."""
