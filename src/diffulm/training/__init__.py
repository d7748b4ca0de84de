"""Training: what a step sees (curriculum.py), the Trainer that takes it (trainer.py), the folder it leaves (run_folder.py)."""
