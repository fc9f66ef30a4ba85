"""Many runs: a sweep and its driver, searches, tables, baselines, verdicts."""
