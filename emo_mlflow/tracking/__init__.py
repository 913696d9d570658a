"""The only writer to and reader from MLflow. Start at `sweep_run.SweepRun` and `reading.load_sweep`."""
