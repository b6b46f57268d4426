"""Sweeps: W&B sweep files run with W&B, or locally by Optuna with the same meaning. Nothing heavy is imported here."""
