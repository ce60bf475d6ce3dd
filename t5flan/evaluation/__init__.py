"""A model and tasks in, results out."""
