"""Records to examples: tokenization, denoisers, joining and trimming."""
