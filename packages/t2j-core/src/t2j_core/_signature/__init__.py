"""What a call is, apart from its data: trees of arguments and outputs, shapes, dtypes, constants."""
