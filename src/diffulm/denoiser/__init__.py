"""The denoiser: the only place that touches the models of `transformers`.

What it is: record.py what a checkpoint says of itself, denoiser.py runs it, layers.py what kinds of layers there are and how
far each may look, experts.py the parent's load-balancing loss, tile.py batches.
How a parent becomes one: adopt.py, mask_token.py picks the mask token, probe.py measures who can look at whom, twin.py makes
a tiny model of the same wiring where the real one cannot show it.
To and from folders: load.py and save.py; released.py the published layouts, card.py and origin.py the model card;
files.py, tensors.py, outline.py and disk.py read and write what lies there, opening.py hands it to transformers, and
quiet.py keeps that from talking.
"""
