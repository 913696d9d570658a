"""The stages of a sweep on Ray, and whole runs as Ray jobs. Start at `engine.run`."""
