"""The exact engine: positions, edits, packing, decoding, likelihoods. Start at `engine.Engine`."""
