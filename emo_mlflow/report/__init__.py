"""Figures and documents that a person reads."""
