"""The denoiser: the only place that runs the models of `transformers`.

What it is: record.py what a checkpoint says of itself, denoiser.py runs it, layers.py what kinds of layers there are and how
far each may look, experts.py the parent's load-balancing loss, tile.py batches.
How a parent becomes one: adopt.py, mask_token.py picks the mask token, probe.py measures who can look at whom, twin.py makes
a tiny model of the same wiring where the real one cannot show it, quiet.py keeps transformers from talking.
"""
