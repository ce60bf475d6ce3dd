"""Distillation: a frozen teacher beside the model that is trained."""
