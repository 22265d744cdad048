"""Shipped recipes, one YAML file each; named on the command line by their stem."""
