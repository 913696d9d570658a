"""One experiment, laid out and run; knows nothing of MLflow. Start at `plan.prepare`, `plan.make_plan` and `run.run`."""
