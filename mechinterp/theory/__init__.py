"""Why it happens: the loss landscape on which an induction head forms."""
