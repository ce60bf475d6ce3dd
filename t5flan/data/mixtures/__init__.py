"""Which task comes next, and which of its records: rates, caps, stages and readers."""
