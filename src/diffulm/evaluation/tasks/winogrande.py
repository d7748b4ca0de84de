"""WinoGrande (Sakaguchi et al., 2020): which of two names fits into a blank; development part, size XL.

A model that reads from left to right is asked how likely the text behind the blank is with each name in it (Trinh and Le,
2018); one that fills holes can be asked for the name itself.
"""

from diffulm.errors import BadInput, shown
from diffulm.evaluation.data import Row, Source
from diffulm.evaluation.tasks import Document, choices

SOURCE = Source(
    "winogrande.jsonl",
    ("sentence", "option1", "option2", "answer"),
    ("allenai/winogrande", "winogrande_xl", "validation"),
)
NORMALISATION = "token"


def document(row: Row) -> Document:
    """The blank's name is the choice; `contexts` end with it, and the `continuation`, the same text as `suffix`, follows."""
    before, blank, after = row["sentence"].partition("_")
    if not blank:
        raise BadInput(f"no blank '_' in {shown(row['sentence'])}; mend or delete this row")
    context = before.rstrip()
    made = choices(context, [row["option1"], row["option2"]], row["answer"], before[len(context) :], first=1)
    return made | {"suffix": after, "contexts": [context + one for one in made["choices"]], "continuation": after}
