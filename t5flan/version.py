"""The version of t5flan, in this one place."""

__version__ = '0.1.0'
