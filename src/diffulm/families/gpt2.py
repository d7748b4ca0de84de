"""GPT-2: the released DiffuGPT layout."""

# Tensor names of the released checkpoints -> names of transformers' GPT2LMHeadModel. First match wins.
RELEASED_NAMES = (("denoise_model.", "transformer."), ("embed_tokens.", "transformer.wte."))
# DiffuGPT-S hides tokens behind this ordinary token; DiffuGPT-M has a row of its own behind the parent's vocabulary.
RELEASED_MASK = 10541
PARENT_VOCABULARY = 50257
# The tokenizer to fall back on when the class that a released folder names is unknown.
TOKENIZER = "GPT2TokenizerFast"
