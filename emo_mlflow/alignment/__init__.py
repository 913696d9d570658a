"""One model's residual space to another's. Start at `tables.Aligner`."""
