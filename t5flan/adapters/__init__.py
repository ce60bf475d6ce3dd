"""Parameter-efficient finetuning: a few new parameters beside a frozen model, one file per method."""
