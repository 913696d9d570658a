"""The `emo-mlflow` command: options to settings to a command. Start at `main.main`."""
