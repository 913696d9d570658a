"""Prompt sets: the built-in one, and a user's own. Start at `selection.load_prompts`."""
