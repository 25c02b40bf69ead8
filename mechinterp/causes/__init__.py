"""Causes: which measures bring a transition about when they are set, and which only move before it."""
