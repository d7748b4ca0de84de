"""Measuring: held-out losses of a model and of its parent on the same blocks, infilling accuracy."""
