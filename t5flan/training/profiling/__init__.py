"""Where the time of a training step goes: a trace of some steps, and a table by part of the model."""
