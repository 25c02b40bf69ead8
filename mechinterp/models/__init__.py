"""The networks: one file per architecture, the canonical network that all reduce to, and its forward pass.

`network` and `forward` need only torch; `hooked` imports TransformerLens, which takes seconds.
"""
