"""Which task is next and which record of it: rates, caps, stages, readers."""
