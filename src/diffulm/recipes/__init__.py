"""Recipes: a typed config and a run function a verb; presets are YAML files under `diffulm/presets/VERB/`."""
