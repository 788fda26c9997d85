"""`compile=True`: functions traced ahead of time, and compiled by torch inductor for the shapes of one signature.

- `tracing` runs the user's Python on tensors without data, and records its operations as a graph.
- `references` makes the tensors that the function refers to arguments of the graph, `results` the result buffers.
- `compiled` compiles the graph and runs it; `progress` tells of it in the log; `refusals` says what is not compiled.
"""
