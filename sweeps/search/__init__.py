"""What to try next, and when to stop: knows Optuna, knows neither Ray nor diffusion."""
