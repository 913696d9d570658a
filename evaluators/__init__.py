"""MLflow evaluator plugins, the scorer cards, and the embedded scorer."""
