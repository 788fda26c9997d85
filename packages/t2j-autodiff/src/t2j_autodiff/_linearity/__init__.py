"""Whether a function is linear in some of its operands, found out by running it.

PyTorch has no notion of a linear function, and the autograd graph does not tell: the backward of a convolution reads
the input, though a convolution is linear in it; that of `max` does not read it. So the function is run on random
numbers (`judge`): with its derivative (`by_derivative`), or without one (`by_values`).
"""
