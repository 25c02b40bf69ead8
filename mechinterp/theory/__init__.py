"""Theory of how a circuit forms: the loss landscape of an induction head, and the kinetics of two solutions."""
