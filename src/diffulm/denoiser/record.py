"""The small self-describing record that makes a plain Hugging Face checkpoint a diffusion model.

It stands under `"diffulm"` in `config.json`; everything else in the folder is the base architecture's own.
"""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from diffulm.errors import BadInput

# What JSON may hold under each key.
KINDS = {
    **dict.fromkeys(("shift", "emit_mask", "additive_mask"), (bool,)),
    **dict.fromkeys(("bos_token_id", "block_size"), (int, type(None))),
    **dict.fromkeys(("window", "parent"), (str, type(None))),
    "mask_token_id": (int,),
    "attention": (str,),
}


@dataclass(frozen=True)
class Record:
    """What the denoiser must know beyond the architecture. BadInput for values that cannot be.

    mask_token_id: the id that hides a token. bos_token_id: fixed at position 0; None only without shift.
    shift: the output of row i predicts token i + 1, as in the AR parent. attention: what `visible=None` means.
    block_size: positions a block when attention is "block". emit_mask: the mask id is an ordinary token of the text, so its
    logit stays as it is (sampling forbids it all the same). window: "keep" = |i - j| < window on sliding layers, "lift" = no
    window, None = the architecture has none. parent: where the AR weights came from, None for an instance made in memory.
    notes: anything more: `full_share` (of a block-causal model's training steps, those under full attention), `clean_copy`
    ("causal": a block-causal model read the clean text before a block from left to right), `lora_rows` ("masked": its adapter
    acts on the rows of masks alone), `additive_mask`
    (the family takes its attention mask as an additive float tensor under eager
    attention), and what recipes and newer versions add.
    """

    mask_token_id: int
    bos_token_id: int | None
    shift: bool = True
    attention: str = "full"
    block_size: int | None = None
    emit_mask: bool = False
    window: str | None = None
    parent: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.attention not in ("full", "block"):
            raise BadInput(f"record: attention is {self.attention!r}; it can be 'full' or 'block'")
        if self.attention == "block" and not 1 <= (self.block_size or 0) < 2**31:
            raise BadInput(
                f"record: attention 'block' needs a positive block_size below 2^31, found {self.block_size!r}"
            )
        if self.window not in (None, "keep", "lift"):
            raise BadInput(f"record: window is {self.window!r}; it can be 'keep', 'lift' or null")
        if self.shift and self.bos_token_id is None:
            raise BadInput("record: with shift position 0 is never predicted, so a bos_token_id is needed there")

    @property
    def additive_mask(self) -> bool:
        return bool(self.notes.get("additive_mask", False))

    @property
    def clean_causal(self) -> bool:
        """Whether the clean text before a block was read from left to right in training."""
        return self.notes.get("clean_copy") == "causal"

    @property
    def infills(self) -> bool:
        """Whether the model learned to see text on both sides: a block-causal one only from steps under full attention."""
        return self.attention == "full" or bool(self.notes.get("full_share"))

    def with_vocabulary(self, size: int) -> "Record":
        """The same record for a tiny twin of `size` rows."""
        return replace(self, mask_token_id=size - 1, bos_token_id=None if self.bos_token_id is None else 0)

    def to_dict(self) -> dict[str, Any]:
        out = asdict(self)
        return {**out.pop("notes"), **out}

    @classmethod
    def from_dict(cls, data: Any, where: str) -> "Record":
        """Read a record; `where` names the file in errors. Unknown keys are kept as notes (newer versions add keys)."""
        if not isinstance(data, dict) or "mask_token_id" not in data:
            raise BadInput(f"{where}: its 'diffulm' record has no mask_token_id; adapt or import the model again")
        for name, value in data.items():
            if name in KINDS and type(value) not in KINDS[name]:  # type, not isinstance: true is no token id
                raise BadInput(f"{where}: its 'diffulm' record has {name} = {value!r}, which cannot be")
        known = {f.name for f in fields(cls)} - {"notes"}
        given: dict[str, Any] = {"bos_token_id": None} | {k: v for k, v in data.items() if k in known}
        try:
            return cls(**given, notes={k: v for k, v in data.items() if k not in known})
        except BadInput as error:
            raise BadInput(f"{where}: {error}") from None
