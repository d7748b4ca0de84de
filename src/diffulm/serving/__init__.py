"""`diffulm serve`: an HTTP front (app.py) and the process behind it that has the model (worker.py)."""
