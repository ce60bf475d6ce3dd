"""Training data made by a model: rationales, new tasks, harder tasks, instructions for texts."""
