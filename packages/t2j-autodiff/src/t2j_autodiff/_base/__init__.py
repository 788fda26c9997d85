"""Options, errors and switches, and what was decided for a wrapped function."""
