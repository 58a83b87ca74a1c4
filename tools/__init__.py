"""Measurements of the project itself: `python -m tools.bench`, from the project's root."""
