"""Text -> numbers: answers, metrics, report."""
