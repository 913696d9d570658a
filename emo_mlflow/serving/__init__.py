"""A condition as a model to load and to serve. Start at `log_model.log_model` and `steered_model.load_steered`."""
