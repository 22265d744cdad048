"""Recipes, the command line, and what joins the stages: evaluation, reports and the demo."""
