"""Logits -> new parameters: losses, optimizer, state, step, checkpoints."""
