"""Plans grids of runs, runs them with Ray Tune and tracks them with MLflow."""
