"""Recipes: one YAML file an experiment, one section a command, and `run` for run_all.sh."""
