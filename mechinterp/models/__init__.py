"""What is trained: parameters by name, and the hooked model that holds them.

`parameters` knows names, shapes and initial values and needs only torch; `transformer` imports TransformerLens,
which takes seconds, so it is imported where a hooked model is needed.
"""
