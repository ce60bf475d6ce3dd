"""Compiles a run's step for devices that need not be there, and reads memory, FLOPs and traffic off the program."""
