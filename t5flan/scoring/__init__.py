"""Text in, numbers out: answer extraction and metrics. Knows no model."""
