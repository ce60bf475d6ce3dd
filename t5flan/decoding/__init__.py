"""Logits -> text: generation and sampling."""
