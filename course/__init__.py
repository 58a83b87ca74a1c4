"""Assignments on this project: `python -m course start 5`, from the project's root."""
