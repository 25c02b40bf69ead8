"""Interventions on the forward pass and on parameters, in training and analysis."""
