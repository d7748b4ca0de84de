"""Checkpoint folders, read and written: load.py and save.py; released.py the published layouts; card.py and origin.py the
model card; opening.py hands what lies there to transformers; files.py, tensors.py, outline.py and disk.py know how it lies.
"""
