"""Attention: `attend()` and its four implementations."""
