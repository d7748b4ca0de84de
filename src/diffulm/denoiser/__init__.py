"""The denoiser: the only place that touches the models of `transformers`.

record.py says what a checkpoint is, denoiser.py runs it, adopt.py turns an AR parent into one, probe.py measures who can
look at whom, mask_token.py picks the mask token, load.py and save.py move it to and from a folder (opening.py and files.py
read what is there, quiet.py keeps transformers from talking), tile.py batches.
"""
