"""`compile=True`: functions traced ahead of time, and compiled by torch inductor for the shapes of one signature.

- `tracing` runs the user's Python on tensors without data, and records its operations as a graph.
- `graphs` makes the tensors that the function refers to arguments of the graph, `results` the result buffers.
- `code` compiles the graph; `compiled` and `in_turn` run it.
- `attempt` tries once for each function; `refuses` and `refusals` say what is not compiled.
"""
