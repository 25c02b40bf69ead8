"""Runnable analyses, one module each; they read runs, write a table, and draw from the table."""
