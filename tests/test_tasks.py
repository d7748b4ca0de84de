"""The tasks: what is asked of a row, that no space is lost on the way, and what is said of rows that cannot be asked."""

import gzip
import json
from pathlib import Path

import pytest
import yaml

from diffulm.evaluation import data, tasks
from diffulm.evaluation.tasks._lm_eval import dataset
from models import bad

# name -> a row as in the local file, a row of the hub (None: the same, or no hub), and what is asked
FOUR = ["He ran.", "He fell.", "He cried.", "He rose."]
EXAMPLES = {
    "hellaswag": (
        {"ctx": "Tango: A band plays. They", "endings": ["sing.", "go."], "label": 1},
        {"activity_label": "Tango", "ctx_a": "A band [step] plays.", "ctx_b": "they", "label": "1",
         "endings": ["[substeps]sing.", "go."]},
        {"context": "Tango: A band plays. They", "choices": [" sing.", " go."], "label": 1},
    ),
    "winogrande": (
        {"sentence": "Ann met Bo, so _'s hat fell.", "option1": "Ann", "option2": "Bo", "answer": 2},
        {"sentence": "Ann met Bo, so _'s hat fell.", "option1": "Ann", "option2": "Bo", "answer": "2"},
        {"context": "Ann met Bo, so", "choices": [" Ann", " Bo"], "label": 1, "suffix": "'s hat fell.",
         "contexts": ["Ann met Bo, so Ann", "Ann met Bo, so Bo"], "continuation": "'s hat fell."},
    ),
    "siqa": (
        {"context": "Sam fell.", "question": "How is Sam?", "answers": ["hurt", "glad", "rich"], "label": 0},
        {"context": "Sam fell.", "question": "How is Sam?", "answerA": "hurt", "answerB": "glad", "answerC": "rich",
         "label": "1"},
        {"context": "Q: Sam fell. How is Sam?\nA:", "choices": [" hurt", " glad", " rich"], "label": 0},
    ),
    "piqa": (
        {"goal": "ice box", "sol1": "add water", "sol2": "add soda ", "label": 0},
        None,
        {"context": "Question: ice box\nAnswer:", "choices": [" add water", " add soda "], "label": 0},
    ),
    "arc_easy": (
        {"question": "Fur is", "choices": ["gray", "soft"], "label": 1},
        {"question": "Fur is", "choices": {"label": ["1", "2"], "text": ["gray", "soft"]}, "answerKey": "2"},
        {"context": "Question: Fur is\nAnswer:", "choices": [" gray", " soft"], "label": 1},
    ),
    "arc_challenge": (
        {"question": "Fur is", "choices": ["gray", "soft"], "label": 1},
        {"question": "Fur is", "choices": {"label": ["A", "B"], "text": ["gray", "soft"]}, "answerKey": "B"},
        {"context": "Question: Fur is\nAnswer:", "choices": [" gray", " soft"], "label": 1},
    ),
    "lambada": (
        {"text": "he saw a cat", "context": "he saw a", "target": "cat"},
        {"text": "he saw a cat\n"},
        {"context": "he saw a", "continuation": " cat", "answer": "cat", "aliases": ["cat"]},
    ),
    "triviaqa": (
        {"question": "Which one?", "answer": "Onion", "aliases": ["Pyaz", "Onion"]},
        {"question": "Which one?", "answer": {"value": "Onion", "aliases": ["Pyaz", "Onion"]}},
        {"context": "Question: Which one?\nAnswer:", "continuation": " Onion", "answer": "Onion",
         "aliases": ["Onion", "Pyaz"]},
    ),
    "mawps": (
        {"question": "2 and 3 ?", "equation": "x=2+3", "answer": 5.0},
        {"question": "2 and 3 ?", "result_float": 5.0},
        {"context": "Question: 2 and 3 ?\nAnswer:", "continuation": " 5", "answer": "5", "aliases": ["5"]},
    ),
    "satmath": (
        {"question": "If $x=3$", "options": ["(A)2", "(B)3"], "label": "B"},
        {"query": "Q: If $x=3$ Answer Choices: (A)2 (B)3\nA: Among A through B, the answer is",
         "choices": ["(A)2", "(B)3"], "gold": [1]},
        {"context": "Q: If $x=3$ Answer Choices: (A)2 (B)3\nA: Among A through B, the answer is", "continuation": " B",
         "answer": "B", "aliases": ["B"], "choices": [" (A)2", " (B)3"], "label": 1},
    ),
    "gsm8k": (
        {"question": "2 + 3?", "answer": "It is <<2+3=5>>5\n#### 5"},
        None,
        {"context": "Question: 2 + 3?\nAnswer:", "continuation": " It is <<2+3=5>>5\n#### 5", "answer": "5",
         "aliases": ["5"]},
    ),
    "gsm8k_symbolic": (
        {"question": "2 + 3?", "chain": "<<2+3=5>>", "answer": "5"},
        {"question": "2 + 3?", "cot": "<<2+3=5>>", "answer": "5"},
        {"context": "Question: 2 + 3?\nAnswer:", "continuation": " <<2+3=5>> #### 5", "answer": "5", "aliases": ["5"],
         "question": "2 + 3?"},
    ),
    "wikitext2": ({"text": " \n = A = \n \n b \n"}, None, {"text": " \n = A = \n \n b \n"}),
    "tinystories": ({"text": "One day."}, None, {"text": "One day."}),
    "squad": (
        {"context": "Red is a dye.", "question": "What is red?", "answer": "a dye"},
        {"context": "Red is a dye.", "question": "What is red?", "answers": {"text": ["a dye", "dye"]}},
        {"context": "Red is a dye.\n\nQuestion: What is red?\n\nAnswer:", "continuation": " a dye", "answer": "a dye",
         "aliases": ["a dye"]},
    ),
    "rocstories_cloze": (
        {"sentences": [*FOUR, "He won."], "endings": ["He won.", "He lost."], "label": 0},
        None,
        {"context": " ".join(FOUR), "choices": [" He won.", " He lost."], "label": 0, "sentences": [*FOUR, "He won."]},
    ),
}  # fmt: skip


def test_every_task_has_an_example_and_a_file_for_lm_eval():
    assert set(EXAMPLES) == set(tasks.names())
    for name in tasks.names():
        beside = Path(tasks.__path__[0]) / f"{name}.yaml"
        text = beside.read_text("utf-8")
        assert yaml.safe_load(text)["task"] == yaml.safe_load(text)["dataset_kwargs"]["definition"] == name


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_is_asked_of_a_row(name, tmp_path):
    row, hub, asked = EXAMPLES[name]
    task = tasks.load(name)
    assert set(task.SOURCE.fields) <= set(row)
    assert task.document(row) == asked
    if hub is not None:
        assert task.SOURCE.hub is not None
        more = {"aliases": ["a dye", "dye"]} if name == "squad" else {}  # the file has one answer, the hub all of them
        assert task.document(task.SOURCE.from_hub(hub)) == asked | more
    if name != "wikitext2":
        path = tmp_path / task.SOURCE.file.removesuffix(".gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row) + "\n\n" + json.dumps(row))
        assert tasks.documents(task, tmp_path) == [asked] * 2 and tasks.documents(task, tmp_path, 1) == [asked]


def whole(document):
    """(context, what follows) of everything that is read as one text."""
    following = [*document.get("choices", ()), *([document["continuation"]] if "continuation" in document else [])]
    if "suffix" in document:
        return [(document["context"], choice) for choice in document["choices"]] + [
            (one, document["continuation"]) for one in document["contexts"]
        ]
    return [(document["context"], one) for one in following]


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in ("wikitext2", "tinystories")])
def test_the_space_between_a_context_and_what_follows_is_there_once(name):
    for context, text in whole(EXAMPLES[name][2]):
        assert not context[-1].isspace() and not text[:2].isspace()
        assert text[0].isspace() or text.startswith("'s")


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_row_of_the_real_files_can_be_asked(name, shared):
    """All rows of the task's file, and of that of its shots."""
    task = tasks.load(name)
    if name == "wikitext2":
        articles = tasks.documents(task, shared / "data")
        text = gzip.decompress((shared / "data" / f"{task.SOURCE.file}").read_bytes()).decode()
        joined = "".join(one["text"] for one in articles)
        assert text == " \n" + joined and len(articles) > 1
        assert all(one["text"].startswith(" = ") and not one["text"].startswith(" = = ") for one in articles)
        return
    for source in (task.SOURCE, getattr(task, "SHOTS", task.SOURCE)):
        documents = tasks.documents(task, shared / "data" / "eval", source=source)
        rows = data.rows(source, shared / "data" / "eval")
        assert len(documents) == len(rows)
        for row, one in zip(rows, documents, strict=True):
            if "choices" in one:
                assert 0 <= one["label"] < len(one["choices"]) and all(choice.strip() for choice in one["choices"])
            if "context" in one and name != "winogrande":
                assert all(text[0] == " " and not context[-1:].isspace() for context, text in whole(one))
            if name == "winogrande":
                filled = [row["sentence"].replace("_", row[option], 1) for option in ("option1", "option2")]
                assert [one["context"] + choice + one["suffix"] for choice in one["choices"]] == filled
                assert [context + one["continuation"] for context in one["contexts"]] == filled
            if name in ("gsm8k", "gsm8k_symbolic"):
                assert one["continuation"].endswith(f"#### {one['answer']}")


@pytest.mark.parametrize("name", ["mawps", "gsm8k", "gsm8k_symbolic"])
def test_shots_for_lm_eval_are_no_questions_that_are_asked(name, shared):
    splits = dataset(name, str(shared / "data" / "eval"))
    asked = set(splits["test"]["query"])
    assert len(splits["shots"]) > 400 and not asked & set(splits["shots"]["query"])
    assert not any(one[0].isspace() for one in splits["shots"]["continuation"])  # lm-eval puts the space there


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("piqa", {"sol2": None}, "empty choice"),
        ("piqa", {"sol2": "  "}, "empty choice"),
        ("piqa", {"label": 2}, "label 2 is none of 0 to 1"),
        ("piqa", {"label": -1}, "label -1"),
        ("piqa", {"label": "?"}, "label '\\?'"),
        ("siqa", {"answers": ["one"]}, "1 choices"),
        ("siqa", {"answers": 7}, "not as its fields should be"),
        ("winogrande", {"answer": 0}, "label 0 is none of 1 to 2"),
        ("winogrande", {"sentence": "no such place"}, "no blank"),
        ("triviaqa", {"answer": " "}, "an empty answer"),
        ("triviaqa", {"answer": None}, "not as its fields should be"),
        ("gsm8k", {"answer": "five"}, "no '####'"),
        ("mawps", {"answer": "many"}, "not as its fields should be"),
        ("satmath", {"label": "C"}, "label 'C' is none of AB"),
        ("rocstories_cloze", {"sentences": FOUR}, "4 sentences"),
        ("tinystories", {"text": ""}, "an empty text"),
    ],
)
def test_a_row_of_which_nothing_can_be_asked_is_named(name, changes, said, tmp_path):
    row, task = EXAMPLES[name][0], tasks.load(name)
    path = tmp_path / task.SOURCE.file.removesuffix(".gz")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in (row, row | changes)))
    assert tasks.documents(task, tmp_path, 1) == [EXAMPLES[name][2]]
    with bad(f"{path.name.split('.')[0]}.*, row 2: .*{said}"):
        tasks.documents(task, tmp_path)


def test_a_missing_field_is_named_with_its_file_and_line(tmp_path):
    (tmp_path / "piqa.jsonl").write_text('{"goal": "a", "sol1": "b", "label": 0}\n')
    with bad("piqa.jsonl, line 1: no field 'sol2'"):
        tasks.documents(tasks.load("piqa"), tmp_path)
    with pytest.raises(data.NoData):
        tasks.documents(tasks.load("siqa"), tmp_path)


def test_a_name_that_is_no_task_names_the_nearest():
    with bad("unknown task 'helaswag'; did you mean 'hellaswag'"):
        tasks.load("helaswag")


def test_articles_are_cut_at_headings_of_the_first_order_alone():
    from diffulm.evaluation.tasks.wikitext2 import articles

    first = (
        " = Robert <unk> = \n \n He is an actor . \n \n = = Career = = \n \n k = 1 and \n = not a heading = \n go . \n"
    )
    second = " \n = Du Fu = \n \n He wrote . \n"
    made = articles(" \n" + first + second)
    assert made == [first + " \n", second.removeprefix(" \n")]
    lines = [one["text"] for one in map(tasks.load("wikitext2").from_hub, [{"text": ""}, {"text": " = A = \n"}])]
    assert lines == [" \n", " = A = \n"]
