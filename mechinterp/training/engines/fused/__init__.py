"""The fused engine: loss and gradient of the two-layer, one-head network by compiled loops, written out by hand.

Symbols in the shapes: B sequences of the batch, n of a part of it, C (at most `CHUNK`) of a chunk; T positions; D
content and P position dimensions, d = D + P = d_model; L labels; W width of the classifier. T′ and D′ are T and D with
padding.
"""
