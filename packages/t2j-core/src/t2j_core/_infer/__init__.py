"""What a function returns, found out by running it: without data where that works, else on values."""
