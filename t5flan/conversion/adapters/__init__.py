"""Adapters: t5flan's own folders and PEFT's."""
