"""Vectorised statistics of the design: arrays in, estimates out; numpy, scipy and statsmodels only."""
