"""Random numbers that are computed on a device from a JAX key in its memory, without a wait.

`keyed` has the dispatch mode that takes the operations that draw; `generators` says which do, and keeps the position of
the next draw in torch's own generator; `operations` says what each operation draws, from the `distributions`. A
`sampler` computes the numbers, on a GPU by the Triton kernel of `philox`. `again` lets a backward draw what its forward
has drawn (`torch.utils.checkpoint`).
"""
