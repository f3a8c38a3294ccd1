"""Where the work runs: knows Ray, knows neither Optuna nor diffusion."""
