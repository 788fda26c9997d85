"""What shows that a function is not linear, for errors. Compared by identity."""

NOT_FINITE = "its pullback is not finite"
NOT_ZERO = "its value at zero is not zero"
NOT_THE_SAME = "its derivative differs from point to point"
NOT_ITS_ADJOINT = "its derivative in PyTorch is not that of its values"
NOT_IN_PROPORTION = "its values do not grow in proportion to its operands"
NOT_ADDITIVE = "its value at a sum is not the sum of its values"
NOT_REPEATABLE = "its values differ from run to run"
