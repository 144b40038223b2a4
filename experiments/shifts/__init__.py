"""Classification where the data shifts, with honest baselines."""
