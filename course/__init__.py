"""Exercises on this project. In its root, `python -m course --help` explains them."""
