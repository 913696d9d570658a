"""Texts to numbers: scorer cards, ONNX scorers, an emotion's own label. Start at `onnx.load_scorers`."""
