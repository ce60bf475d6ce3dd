"""The Flan 2022 collection as SeqIO tasks and mixtures."""
