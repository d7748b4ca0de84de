"""GPT-2: the released DiffuGPT layout."""

# Tensor names of the released checkpoints <-> names of transformers' GPT2LMHeadModel. First match wins, either way.
RELEASED_NAMES = (("embed_tokens.", "transformer.wte."), ("denoise_model.", "transformer."))
# What `diffulm export` may write, the default first: the table above, or () for transformers' own names.
LAYOUTS = {"diffugpt": RELEASED_NAMES, "denoise-model": RELEASED_NAMES}
# DiffuGPT-S hides tokens behind this ordinary token; DiffuGPT-M has a row of its own behind the parent's vocabulary.
RELEASED_MASK = 10541
PARENT_VOCABULARY = 50257
# The tokenizer to fall back on when the class that a released folder names is unknown.
TOKENIZER = "GPT2TokenizerFast"
