"""Text -> numbers: answer extraction and metrics. Imports no model code."""
