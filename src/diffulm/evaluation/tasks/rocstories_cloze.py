"""ROCStories, the Story Cloze Test (Mostafazadeh et al., 2016): which of two sentences ends a story of four; validation part
of spring 2016. Its authors give it out on request, so it is read from a folder only."""

from diffulm.errors import BadInput
from diffulm.evaluation.data import Row, Source
from diffulm.evaluation.tasks import Document, choices

SOURCE = Source("rocstories.jsonl", ("sentences", "endings", "label"))
NORMALISATION = "token"


def document(row: Row) -> Document:
    """Beside the choices all five `sentences`, the right ending last, for those who fill one in."""
    if len(row["sentences"]) != 5:
        raise BadInput(f"{len(row['sentences'])} sentences, a story has 5; mend or delete this row")
    made = choices(" ".join(row["sentences"][:4]), row["endings"], row["label"])
    return made | {"sentences": row["sentences"]}
