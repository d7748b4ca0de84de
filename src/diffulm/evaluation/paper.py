"""The paper's own figures, to stand beside ours: marked as such, never mixed with what was measured here. No torch in here.

Source: Gong et al., "Scaling Diffusion Language Models via Adaptation from Autoregressive Models" (ICLR 2025), third
version of arXiv 2410.17891. Accuracies in percent, zero-shot but for GSM8K, which is after fine-tuning; ROCStories are
ROUGE-1, 2 and L.
"""

from dataclasses import dataclass

SOURCE = "Gong et al., ICLR 2025, arXiv 2410.17891v3, Table 1"
COLUMNS = ("TriviaQA", "LAMBADA", "HellaSwag", "Winogrande", "SIQA", "PIQA", "GSM8K", "ROCStories", "Code")


@dataclass(frozen=True)
class Row:
    """A row of Table 1 as printed. prefix_only: the AR models' infilling (the last two columns) saw the text before the hole
    alone."""

    model: str
    accuracies: tuple[float, float, float, float, float, float, float]
    rouge: tuple[float, float, float]
    code: float
    prefix_only: bool = False

    @property
    def values(self) -> dict[str, tuple[float, ...]]:
        """Column -> its figures: one, or the three ROUGE scores."""
        columns = [*((one,) for one in self.accuracies), self.rouge, (self.code,)]
        return dict(zip(COLUMNS, columns, strict=True))


TABLE_1 = (
    Row("GPT2-S", (4.0, 25.9, 29.9, 48.5, 35.7, 62.1, 44.8), (7.8, 0.8, 7.4), 1.6, True),
    Row("SEDD-S", (1.5, 12.4, 30.2, 50.1, 34.4, 55.6, 45.3), (11.9, 0.7, 10.9), 0.7),
    Row("DiffuGPT-S", (2.0, 21.6, 33.4, 50.8, 37.0, 57.7, 50.2), (13.7, 1.4, 12.6), 0.3),
    Row("GPT2-M", (6.7, 37.7, 38.3, 50.7, 37.7, 67.4, 45.6), (8.6, 0.9, 8.2), 2.6, True),
    Row("SEDD-M", (1.8, 23.1, 31.5, 49.0, 35.4, 56.1, 53.5), (13.1, 1.4, 12.2), 0.5),
    Row("DiffuGPT-M", (3.8, 30.3, 37.2, 52.6, 39.0, 59.6, 61.8), (18.7, 2.7, 17.0), 2.9),
    Row("Plaid1B", (1.2, 8.6, 39.3, 51.3, 32.3, 54.5, 32.6), (12.1, 1.1, 11.2), 0.1),
    Row("LLaMA2-7B", (45.4, 68.8, 74.9, 67.1, 44.8, 78.3, 58.6), (11.6, 2.1, 10.5), 1.7, True),
    Row("DiffuLLaMA", (18.5, 53.9, 58.7, 56.4, 43.2, 63.3, 63.1), (23.3, 5.5, 21.2), 15.5),
)

IN_CONTEXT = {
    "zero-shot": {"mawps": 9.7, "triviaqa": 18.5},
    "few-shot": {"mawps": 31.3, "satmath": 23.6, "triviaqa": 20.9},
    "self-consistency of 3": {"mawps": 33.1, "satmath": 27.7, "triviaqa": 26.0},
    "hit@3": {"mawps": 40.8, "satmath": 57.7, "triviaqa": 34.1},
}
"""DiffuLLaMA, accuracy in percent. SATMath zero-shot is printed as "below 1"."""

PERPLEXITY = {
    "DiffuGPT-S": {32: 75, 64: 58, 128: 44, 256: 39, 512: 36, 1024: 35},
    "DiffuGPT-M": {32: 64, 64: 46, 128: 38, 256: 35, 512: 31, 1024: 30},
    "SEDD-S": {32: 160, 64: 111, 128: 87, 256: 63, 512: 54, 1024: 45},
}
"""Generative perplexity under GPT2-large by steps; read off a figure, so within 3%."""

DECODING_SECONDS = {"DiffuLLaMA": {512: 12.5, 1024: 13.3, 2048: 23.5}, "LLaMA2": {512: 9.2, 1024: 17.5, 2048: 35.7}}
"""Seconds by length, batch 1; DiffuLLaMA at T=256, LLaMA2 with a cache of keys and values."""

CHANCE = {"HellaSwag": 25.0, "Winogrande": 50.0, "SIQA": 100 / 3, "PIQA": 50.0}
"""Accuracy in percent of who guesses."""
