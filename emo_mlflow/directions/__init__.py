"""Prompts to directions, subspaces and controls. Start at `fitting.fit_directions`."""
