"""One file per method: its settings, its modules, and `adapt`. `adapters.config.METHODS` finds the files by name."""
