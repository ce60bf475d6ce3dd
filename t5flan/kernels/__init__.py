"""Attention behind one function."""
