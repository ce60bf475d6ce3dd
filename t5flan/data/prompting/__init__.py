"""Items of instruction data to prompts: templates, exemplars, conversations."""
