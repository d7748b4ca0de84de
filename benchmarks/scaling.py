"""The scaling law of adaptation: what parents of several sizes lose, by the tokens that they are adapted on."""

# Parents: width, layers; heads of 16, an MLP of 8/3 of the width, the tokenizer of stories260k. 54K to 1.05M parameters.
SHAPES = {"54K": (32, 3), "135K": (48, 4), "428K": (80, 5), "1.05M": (128, 5)}
PARENT_TOKENS, CONTROL_TOKENS = "4M", "2M"
TOKENS = ("500K", "1M", "2M", "4M")


def rate(width: int) -> float:
    """3e-3 at the width of stories260k, where benchmarks/ablation.py found it best of three; as 1 / sqrt(width) elsewhere."""
    return round(3e-3 * (64 / width) ** 0.5, 5)


def runs() -> list[str]:
    """Every run of the law: parent, children and control of a size after those of the size before."""
    return [
        name
        for size in SHAPES
        for name in (f"parent-{size}", *(f"child-{size}-{tokens}" for tokens in TOKENS), f"control-{size}")
    ]
