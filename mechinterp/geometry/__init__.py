"""Geometry of the loss along training: gradients, the Hessian's spectrum, and the local learning coefficient."""
