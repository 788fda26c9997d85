"""What a function returns, found out by running it: without data where that works, else on values.

Begin with `infer`, which tries `without_data` (`meta_mode`, `fake_mode`) and then `runs`. A run is a `Call`, made
`apart` from everything else; `read_outputs` reads it.

- Values for runs: `made_up` gives the examples and the first values, `made_up_constrained` those that meet constraints,
  and `made_up_further` more that show differences, with `numbers_in_code`. `allowance` bounds the work.
- What a run shows: `dense`, `indices`, `kept_tensors`; random numbers in `draws` and `unkeyed`, seeded ones in `rng`.
- `traced_ahead` tells functions that are not called but traced for the compiler.
- What users are told: `failures` and `notes` on exceptions, `value_dependence` and `fixed_shapes` on shapes.
"""
