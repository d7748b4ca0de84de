"""ARC (Clark et al., 2018): science questions of grades 3 to 9, those that simple methods get wrong; test part."""

from dataclasses import replace

from diffulm.evaluation.tasks import arc_easy
from diffulm.evaluation.tasks.arc_easy import NORMALISATION, document

__all__ = ["NORMALISATION", "SOURCE", "document"]

SOURCE = replace(arc_easy.SOURCE, file="arc-challenge.jsonl", hub=("allenai/ai2_arc", "ARC-Challenge", "test"))
