"""A study: a design that is fixed before the first steered text, the exact tests that it names, and what they showed; knows nothing of MLflow.

Start at `design.fix_design` and `procedure.run_tests`.
"""
