"""Texts to numbers: what a scorer is, ONNX scorers and their cards, an emotion's own label. Start at `loading.load_scorers`."""
