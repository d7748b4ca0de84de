"""LLaMA: the released DiffuLLaMA layout (plain) and that of models derived from it."""

RELEASED_NAMES = (("denoise_model.", "model."), ("embed_tokens.", "model.embed_tokens."))
RELEASED_MASK = 811
PARENT_VOCABULARY = 32000
TOKENIZER = "LlamaTokenizerFast"
