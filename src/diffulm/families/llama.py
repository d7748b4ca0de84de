"""LLaMA: the released DiffuLLaMA layout (plain) and that of models derived from it."""

RELEASED_NAMES = (("embed_tokens.", "model.embed_tokens."), ("denoise_model.", "model."))
LAYOUTS = {"diffullama": (), "denoise-model": RELEASED_NAMES}
RELEASED_MASK = 811
PARENT_VOCABULARY = 32000
TOKENIZER = "LlamaTokenizerFast"
