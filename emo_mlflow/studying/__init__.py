"""A study: a design that is fixed before the first steered text, the exact tests that it names, and what they showed; knows nothing of MLflow.

Start at `plan.lay_out`, `procedure.run_tests` and `verdicts.answers`.
"""
