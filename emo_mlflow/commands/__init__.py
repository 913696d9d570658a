"""A file per command or entry point: settings to a logged run."""
