"""Evaluation: what a model writes for a dataset's prompts, and how sure it is of the gold text."""
