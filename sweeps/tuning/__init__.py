"""The only place that imports ray and optuna."""
