"""Everything about a call except its data: trees of arguments and outputs, shapes, dtypes, constants."""
