"""The generative parts of the suite on made-up rows: what is asked, what counts, what may not depend on what."""

import json
import math
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from diffulm import scoring
from diffulm.denoiser.adopt import adopt
from diffulm.evaluation import generation as samples_of
from diffulm.evaluation import subject as subjects
from diffulm.evaluation import tasks, writing
from diffulm.evaluation.data import NoData
from diffulm.evaluation.journal import Journal
from diffulm.evaluation.subject import Completion, Subject
from diffulm.evaluation.suite import generation, gsm8k, in_context, speed, triviaqa
from diffulm.evaluation.trial import Trial
from diffulm.filling import Filled
from diffulm.lm import DiffusionLM
from models import bad, build, tokenizer

CONTEXT = 64
WRITTEN = (triviaqa, gsm8k, in_context)
TRIVIA = [
    {"question": f"w{n} w3 w4 ?", "answer": f"Animal{n}", "aliases": [f"The beast {n} of w5 w6", f"Animal{n}"]}
    for n in range(10, 18)
]
MAWPS = [{"question": f"w{n} w5 ?", "equation": "", "answer": n * 0.5} for n in range(20, 26)]
TRAIN = [{"question": f"w{n} w6 ?", "equation": "", "answer": n * 2.0} for n in range(30, 40)]
SAT = [
    {"question": f"w{n} w7 ?", "options": ["(A)1", "(B)2", "(C)3", "(D)4"], "label": "ABCD"[n % 4]}
    for n in range(40, 47)
]
GSM = [{"question": f"w{n} w8 ?", "chain": "<<1+1=2>>", "answer": f"{n}000"} for n in range(50, 55)]
RIGHT = {
    **{row["question"]: f" the {row['answer'].upper()}!" for row in TRIVIA},
    **{row["question"]: f" {row['answer']}" for row in MAWPS},
    **{row["question"]: f" {row['label']}." for row in SAT},
    **{row["question"]: f" <<1+1=2>> #### {int(row['answer']):,}" for row in GSM},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "data"
    squad = [{"context": "The text.", "question": "Which one?", "answer": "text", "aliases": ["text"]}]
    files = {
        "triviaqa": TRIVIA, "squad": squad, "mawps/test": MAWPS, "mawps/train": TRAIN, "satmath": SAT,
        "gsm8k-symbolic/test": GSM, "text/tinystories/valid": [{"text": "w3 " * 80}] * 3,
    }  # fmt: skip
    for name, rows in files.items():
        path = found / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found


class Fake:
    """A subject that writes what it is told to, and keeps what it was asked."""

    name, autoregressive = "fake", False

    def __init__(self, write: Any, context: int = 10**6) -> None:
        self.write, self.context, self.bos, self.tokenizer = write, context, [1], tokenizer()
        self.lm = SimpleNamespace(record=SimpleNamespace(notes={}))
        self.calls: list[dict[str, Any]] = []

    def complete(self, prompts, length, *, draws=1, **options):
        self.calls.append({"prompts": prompts, "length": length, "draws": draws, **options})
        return [[Completion(self.write(prompt, draw), 0, 1, True) for draw in range(draws)] for prompt in prompts]

    @property
    def prompts(self) -> list[str]:
        return [prompt for call in self.calls for prompt in call["prompts"]]


def right(prompt: str, draw: int = 0) -> str:
    """The answer to the question that a prompt ends with."""
    asked = prompt.split("\n\n")[-1]
    return next(answer for question, answer in RIGHT.items() if question in asked)


def by_name(cells) -> dict[tuple[str, str], Any]:
    found = {(cell.task, cell.metric): cell for cell in cells}
    assert len(found) == len(cells), "two cells of one name"
    return found


def small(autoregressive: bool = False, **words: Any) -> Subject:
    """A tiny model of random weights whose tokenizer puts BOS in front of everything it is asked to encode plainly."""
    known = tokenizer(**words)
    known.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    denoiser, known = adopt(build("llama", max_position_embeddings=CONTEXT), known)
    return Subject("small parent" if autoregressive else "small", DiffusionLM(denoiser, known), autoregressive)


@pytest.fixture(scope="module")
def child() -> Subject:
    return small()


@pytest.fixture(scope="module")
def parent() -> Subject:
    return small(autoregressive=True)


@pytest.mark.parametrize("part", WRITTEN)
def test_a_right_answer_counts_once_and_a_wrong_one_not_at_all(part, folder):
    """The published LAMBADA counted each hit twice."""
    rows = {"triviaqa": 8, "gsm8k_symbolic": 5, "mawps": 6, "satmath": 7 - 4}  # SATMath's last four are its shots
    for cell in part.run(Trial(Fake(right), data=folder)):
        name = cell.task.split(",")[0]
        expected = 8 - 4 if part is in_context and name == "triviaqa" else rows[name]
        assert (cell.value, cell.count, sum(cell.items)) == (1.0, expected, expected)
        assert cell.length == "oracle" if cell.task == "triviaqa" else cell.length == "free"
    for cell in part.run(Trial(Fake(lambda prompt, draw: " nothing of the kind"), data=folder)):
        assert (cell.value, cell.count > 0, sum(cell.items)) == (0.0, True, 0)
        assert cell.stderr is not None
        assert cell.stderr > 0  # none right of a few is no proof


def test_triviaqa_asks_triviaqa_without_a_text_beside_it(folder):
    """The published code loads SQuAD for it."""
    asked = Fake(right)
    triviaqa.run(Trial(asked, data=folder))
    assert asked.prompts == [f"Question: {row['question']}\nAnswer:" for row in TRIVIA] * 2
    (folder / "triviaqa.jsonl").unlink()
    assert (folder / "squad.jsonl").exists()
    with pytest.raises(NoData):
        triviaqa.run(Trial(Fake(right), data=folder))


def test_exact_match_is_more_than_to_contain(folder):
    cells = by_name(triviaqa.run(Trial(Fake(lambda prompt, draw: right(prompt) + " or not"), data=folder)))
    assert cells["triviaqa", "accuracy"].value == cells["triviaqa, free length", "accuracy"].value == 1
    assert cells["triviaqa, free length", "exact match"].value == 0


def test_answers_that_are_nothing_are_counted_and_not_asked(folder):
    (folder / "triviaqa.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [{"question": "w9", "answer": "The", "aliases": ["!"]}, *TRIVIA])
    )
    asked = Fake(lambda prompt, draw: " words")
    cell = triviaqa.run(Trial(asked, data=folder))[0]
    assert (cell.count, cell.value, cell.counts) == (8, 0.0, {"answers empty": 1})
    assert not any("w9" in prompt for prompt in asked.prompts)


def test_a_row_without_its_field_is_named(folder):
    (folder / "mawps/test.jsonl").write_text('{"question": "w1"}\n')
    cells = in_context.run(Trial(Fake(right), data=folder))  # the other tasks go on
    assert [cell.value for cell in cells] == [None] * 4 + [1.0] * 8
    assert all("line 1: no field 'answer'" in cell.note for cell in cells[:4])


def test_no_part_changes_what_the_next_one_is_run_with(folder):
    """The published evaluation sets the shared number of steps to an answer's length and leaves it there."""
    asked = Fake(right)
    trial = Trial(asked, data=folder, limit=2)
    before = copy(trial)
    for part in (triviaqa, in_context, gsm8k):
        asked.calls.clear()
        part.run(trial)
        assert trial == before
        steps = {call["steps"] for call in asked.calls}
        assert steps == ({64} if part is gsm8k else {None})  # None: one token a forward, whatever came before
    asked.calls.clear()
    gsm8k.run(Trial(asked, data=folder, limit=2, steps=5))
    assert asked.calls[0]["steps"] == 5


def test_shots_are_whole_rows_that_are_not_asked(folder):
    asked = Fake(right)
    in_context.run(Trial(asked, data=folder, limit=2, shots=3))
    ends = [prompt.split("\n\n") for prompt in asked.prompts]
    shown = {shot for *shots, _ in ends for shot in shots}
    kept = set(shown)
    assert {len(shots) - 1 for shots in ends} == {0, 3}
    assert shown.isdisjoint(end for *_, end in ends)
    # the train file's first rows, or the last ones of a file without one; a space before each answer, nothing glued
    for name, rows in (("mawps", TRAIN[:3]), ("satmath", SAT[-3:]), ("triviaqa", TRIVIA[-3:])):
        document = tasks.load(name).document
        expected = {f"{document(row)['context']} {document(row)['answer']}" for row in rows}
        assert expected <= shown
        shown -= expected
    assert not shown
    others = Fake(right)
    in_context.run(Trial(others, data=folder, shots=3))  # the same are shown where everything is asked
    ends = [prompt.split("\n\n") for prompt in others.prompts]
    assert {shot for *shots, _ in ends for shot in shots} == kept
    assert not [(shot, end) for *_, end in ends for shot in kept if shot.startswith(end)]


def test_where_shots_have_no_room_fewer_are_shown_and_nothing_is_cut(folder):
    # in words: a question of MAWPS has 5, a shot 6 (BOS 1, the answer 16 at most)
    tight = Fake(right, context=1 + 2 * 6 + 5 + 16)
    cells = by_name(in_context.run(Trial(tight, data=folder)))
    few = cells["mawps, few-shot", "accuracy"]
    assert (few.settings["shots"], few.settings["shots_used"]) == (4, 2.0)
    assert {prompt.count("Answer:") for prompt in tight.prompts if "w6" in prompt} == {3}
    assert "contexts cut" not in few.counts
    assert few.note == ""


def test_a_context_that_is_cut_is_counted_and_said(folder, child):
    question = {"question": "w5 " * CONTEXT, "answer": "Animal1", "aliases": []}
    (folder / "triviaqa.jsonl").write_text(f"{json.dumps(question)}\n{json.dumps(TRIVIA[0])}\n")
    for cell in triviaqa.run(Trial(child, data=folder, steps=1)):
        assert (cell.count, cell.counts, cell.note) == (2, {"contexts cut": 1}, "1 of 2 contexts cut on the left")


def test_three_draws_are_made_once_for_vote_and_hit(folder):
    def write(prompt: str, draw: int) -> str:
        return [" 1", " no idea", right(prompt)][draw]

    asked = Fake(write)
    cells = by_name(in_context.run(Trial(asked, data=folder)))
    drawn = [call for call in asked.calls if call["draws"] > 1]
    assert [call["draws"] for call in drawn] == [3, 3, 3]  # a task each
    assert all(call["temperature"] > 0 for call in drawn)
    # MAWPS: "1", nothing, the right one: the first wins the vote, the third is a hit
    assert cells["mawps, self-consistency of 3", "accuracy"].value == 0
    assert cells["mawps, hit@3", "accuracy"].value == 1
    assert cells["mawps, zero-shot", "accuracy"].value == 0
    chance = {way: cells[f"satmath, {way}", "accuracy"].settings["chance"] for way in ("few-shot", "hit@3")}
    assert chance == {"few-shot": 0.25, "hit@3": pytest.approx(1 - 0.75**3)}


def test_keys_name_task_and_row_and_not_the_place_in_a_batch(folder):
    some, all_of = Fake(right), Fake(right)
    gsm8k.run(Trial(some, data=folder, limit=2))
    gsm8k.run(Trial(all_of, data=folder))
    assert some.calls[0]["keys"] == all_of.calls[0]["keys"][:2]
    triviaqa.run(Trial(some, data=folder))
    keys = [key for call in some.calls for key in call["keys"]]
    assert len(set(keys)) == 2 + len(TRIVIA)


def test_what_is_in_the_journal_is_not_written_again(folder, tmp_path):
    def never(prompt: str, draw: int) -> str:
        raise AssertionError("asked again")

    path = tmp_path / "journal.jsonl"
    for part in WRITTEN:
        cells = part.run(Trial(Fake(right), data=folder, journal=Journal(path)))
        assert part.run(Trial(Fake(never), data=folder, journal=Journal(path))) == cells
        with pytest.raises(AssertionError, match="asked again"):
            part.run(Trial(Fake(never), data=folder, seed=1, journal=Journal(path)))


def test_no_file_is_no_data(tmp_path):
    cells = in_context.run(Trial(Fake(right), data=tmp_path / "nothing here"))
    assert len(cells) == 12
    assert {(cell.value, cell.note) for cell in cells} == {(None, "no data")}


def test_gsm8k_says_whether_the_model_was_fine_tuned_and_fills_the_canvas(folder):
    asked = Fake(right)
    cell = gsm8k.run(Trial(asked, data=folder))[0]
    assert cell.note == "not fine-tuned"
    words = {len(prompt.split()) for prompt in asked.prompts}
    assert {1 + w + n for w, n in zip(sorted(words), set(asked.calls[0]["length"]), strict=True)} == {256}
    asked.lm.record.notes["sft"] = {"preset": "gsm8k"}
    assert gsm8k.run(Trial(asked, data=folder))[0].note == ""
    cell = gsm8k.run(Trial(Fake(lambda prompt, draw: " 50000"), data=folder))[0]
    assert (cell.value, cell.counts) == (0.0, {"no answer found": 5})  # a number, but no mark before it


TALK = (
    "{% for m in messages %}<u>{{ m.content }}{% if m.role == 'assistant' %}<end>{% else %}<a>{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("autoregressive", [False, True])
def test_gsm8k_asks_in_the_template_of_fine_tuning_and_its_end_of_a_turn_ends_the_text(
    folder, monkeypatch, autoregressive
):
    subject = small(autoregressive, special=("<u>", "<a>", "<end>"), template=TALK)
    words = subject.tokenizer.convert_tokens_to_ids
    w8, end = words("w8"), words("<end>")
    asked = []

    def fill(denoiser, canvases, options, forbidden, callback, ends, pad, **_):
        assert (ends, pad) == (end, end)  # no padding of its own: the end of a turn again
        asked.extend(one.ids[one.fixed].tolist() for one in canvases)
        new = [w8, w8, end, *[w8] * 99]
        return [Filled(one, [*one.ids[one.fixed].tolist(), *new][: len(one.ids)], 1, 0.0) for one in canvases]

    def generate(ids, max_new_tokens, eos_token_id, attention_mask, **_):
        assert eos_token_id == end
        asked.extend(row[seen.bool()].tolist() for row, seen in zip(ids, attention_mask, strict=True))
        return torch.cat([ids, torch.tensor([w8, w8, end, *[w8] * 99])[:max_new_tokens].expand(len(ids), -1)], 1)

    monkeypatch.setattr(subjects, "fill", fill)
    monkeypatch.setattr(subject.lm.model, "generate", generate)
    said = []
    monkeypatch.setattr(gsm8k.answers, "marked", lambda text: said.append(text))
    cell = gsm8k.run(Trial(subject, data=folder))[0]
    assert [text.strip() for text in said] == ["w8 w8"] * len(GSM)
    assert asked == [[1, words("<u>"), words(row["question"].split()[0]), w8, 0, words("<a>")] for row in GSM]
    assert cell.settings["template"] == "its own"
    assert cell.note == ("" if autoregressive else "not fine-tuned")  # an adapted chat model was not tuned as one


def test_gsm8k_has_a_canvas_as_long_as_the_rows_of_fine_tuning(child):
    question = {"question": "w3 w4 ?", "context": "Question: w3 w4 ?\nAnswer:"}
    plain = gsm8k.prompt(child, None, "k", question)
    assert (plain.ids, plain.length) == (None, CONTEXT - 1 - len(plain.text.split()))
    shorter = copy(child)
    shorter.lm = DiffusionLM(copy(child.denoiser), child.tokenizer)
    shorter.denoiser.record = replace(child.lm.record, notes={"sft": {"length": 48}})
    assert gsm8k.prompt(shorter, None, "k", question).length == 48 - 1 - len(plain.text.split())
    assert child.lm.record.notes.get("sft") is None


def test_bos_stands_in_front_and_nowhere_else(folder, child, monkeypatch):
    """The published prompts have it in the middle wherever the tokenizer puts it in front of what it encodes."""
    seen = []

    def fill(denoiser, canvases, *_, **__):
        seen.extend(one.ids.tolist() for one in canvases)
        return [Filled(one, one.ids.masked_fill(~one.fixed, 5).tolist(), 1, 0.0) for one in canvases]

    monkeypatch.setattr(subjects, "fill", fill)
    for part in WRITTEN:
        part.run(Trial(child, data=folder, limit=2))
    assert child.tokenizer.encode("w3 w4")[0] == child.bos[0] == 1  # it would, if asked plainly
    assert len(seen) == 2 * 2 + 2 + 3 * 2 * (1 + 1 + 3)
    assert all(ids[0] == 1 and ids.count(1) == 1 and len(ids) <= CONTEXT for ids in seen)


def test_a_parent_may_write_as_many_tokens_as_the_answer_has_and_not_as_many_as_it_has_letters(
    folder, parent, monkeypatch
):
    asked = []

    def generate(ids, max_new_tokens, **_):
        asked.append(max_new_tokens)
        return torch.cat([ids, ids.new_full((len(ids), max_new_tokens), 5)], 1)

    monkeypatch.setattr(parent.lm.model, "generate", generate)
    cell = triviaqa.run(Trial(parent, data=folder))[0]
    assert asked == [6, 16]  # "The beast 10 of w5 w6", then the length that tells nothing
    assert cell.length == "none"


@pytest.mark.parametrize("reader", ["child", "parent"])
def test_a_text_does_not_depend_on_the_lengths_beside_it(reader, request, monkeypatch):
    subject, positions = request.getfixturevalue(reader), [0]
    generate = subject.lm.model.generate

    def watched(ids, **how):
        positions.append(ids.shape[1] + how["max_new_tokens"])
        return generate(ids, **how)

    monkeypatch.setattr(subject.lm.model, "generate", watched)
    prompts, lengths = ["w3 " * 45, "w4 w5", "w6"], [10, 24, 3]  # the first two have no room in one tile
    keys = ["a", "b", "c"]
    for temperature in (0.0, 1.0):
        how = {"temperature": temperature, "seed": 3, "steps": 6}
        found = subject.complete(prompts, lengths, keys=keys, **how)
        alone = [subject.complete([p], n, keys=[k], **how)[0] for p, n, k in zip(prompts, lengths, keys, strict=True)]
        assert found == alone
        assert [one[0].cut for one in found] == [0, 0, 0]
    assert max(positions) <= CONTEXT  # beyond it a model of learned positions has none
    with bad("64 tokens do not fit"):
        subject.complete(["w3", "w4"], [3, CONTEXT], keys=[0, 1])


def test_batch_size_changes_nothing(folder, child, parent):
    for part in (triviaqa, generation):
        one, other = (
            part.run(Trial(child, judge=parent, data=folder, limit=5, steps=4, batch_size=size)) for size in (1, 3)
        )
        assert one == other


def test_the_steps_of_the_sweep_and_the_lengths_of_the_clock():
    trial = Trial(Fake(right))
    assert generation.sweep(trial, 1024) == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert generation.sweep(trial, 100) == [8, 16, 32, 64]
    assert generation.sweep(Trial(Fake(right), limit=20), 1024) == [8, 16, 32, 64]
    assert generation.sweep(Trial(Fake(right), steps=7), 1024) == [7]
    paper = [(512, 256), (1024, 256), (2048, 256)]
    assert speed.lengths(4096, limited=False) == paper
    assert speed.lengths(256, limited=False) == [(64, 32), (128, 32), (256, 32), *paper]
    assert speed.lengths(256, limited=True) == speed.lengths(256, limited=False)
    assert speed.lengths(1024, limited=True) == [(64, 32), (128, 32), (256, 32), (2048, 256)]


def test_figures_of_samples_known_by_heart(parent):
    texts = [[5, 5, 5, 5, 5], [3, 4, 5, 6, 7]]
    cells = by_name(generation.figures(Trial(parent), parent, "t", texts, {}))
    values = {metric: cell.value for (_, metric), cell in cells.items()}
    assert values["entropy in nats"] == pytest.approx(math.log(5) / 2)
    assert values["distinct-1"] == pytest.approx((1 / 5 + 1) / 2)
    assert values["distinct-2"] == pytest.approx((1 / 4 + 1) / 2)
    assert values["distinct-3"] == pytest.approx((1 / 3 + 1) / 2)
    assert values["repeated 4-grams"] == pytest.approx((1 / 2 + 0) / 2)
    ids = torch.tensor([[1, *text] for text in texts])
    with torch.no_grad():
        logits = parent.lm.model(ids).logits[:, :-1]
    logits[..., parent.lm.mask_token_id] = -torch.inf
    nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").sum(1)
    # float32 costs through two routes
    assert values["perplexity"] == pytest.approx(math.exp(float(nats.sum()) / 10), rel=1e-5)
    assert cells["t", "perplexity"].items == pytest.approx((nats / 5).tolist(), rel=1e-5)
    assert cells["t", "perplexity"].note == ""


def test_the_error_of_a_perplexity_is_what_resampling_the_texts_gives():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(50, 150, (100,), generator=generator)
    nats = tokens * (3 + 0.3 * torch.randn(100, generator=generator))
    found = [generation.Judged(float(n), int(t)) for n, t in zip(nats, tokens, strict=True)]
    value, error = generation.perplexity(found)
    assert value == pytest.approx(math.exp(float(nats.sum() / tokens.sum())), rel=1e-6)
    again = torch.randint(0, 100, (4000, 100), generator=generator)
    spread = float((nats[again].sum(1) / tokens[again].sum(1)).exp().std())
    # 4,000 resamples find a spread to about 1%, linearisation errs by as much
    assert error == pytest.approx(spread, rel=0.05)
    assert generation.perplexity(found[:1])[1] is None


def test_a_judge_with_other_tokens_reads_text_with_its_bos_in_front(child, monkeypatch):
    judge = small(autoregressive=True, special=("<x>", "<y>"))  # the last words are other ones
    asked = []

    def scores(denoiser, requests, method):
        asked.extend(requests)
        return [scoring.Scored(2.0 * one.tokens, 0, one.tokens, 1) for one in requests]

    monkeypatch.setattr(scoring, "scores", scores)
    cell = generation.figures(Trial(child, judge=judge), judge, "t", [[3, 62, 4], [2]], {})[0]
    assert "encoded again" in cell.note
    assert (cell.value, cell.counts) == (pytest.approx(math.exp(2)), {"samples without text": 1})  # </s> alone
    words = judge.tokenizer.encode(child.tokenizer.decode([3, 62, 4]), add_special_tokens=False)
    assert [one.ids for one in asked] == [(1, *words)]
    assert (asked[0].start, asked[0].stop) == (1, 1 + len(words))


def test_samples_stand_beside_the_parents_and_real_text(folder, child, parent, monkeypatch):
    monkeypatch.setattr(generation, "STEPS", (4, 8, 128))
    trial = Trial(child, parent=parent, data=folder, limit=3)
    cells = by_name(generation.run(trial))
    named = {task for task, _ in cells}
    steps = {f"generation, {n} steps" for n in (4, 8)}
    assert named == {*steps, "generation, text of tinystories", "generation, text of wikitext2"}
    assert cells["generation, text of wikitext2", "perplexity"].note == "no data"
    real = cells["generation, text of tinystories", "distinct-1"]
    assert real.value == pytest.approx(1 / (CONTEXT - 1))  # one word, to the end of the canvas
    for task in steps:
        assert cells[task, "perplexity"].count == 3
        assert cells[task, "perplexity"].settings["judge"] == parent.name
        assert cells[task, "perplexity"].better == "lower"
    own = by_name(generation.run(Trial(parent, judge=parent, data=folder, limit=3)))
    assert ("generation, left to right", "perplexity") in own
    assert generation.run(Trial(child, data=folder))[0].note.startswith("no judge")


def test_a_parents_own_samples_are_drawn_left_to_right_from_what_it_says(parent):
    banned = samples_of.ancestral(parent.denoiser, [1], 6, temperature=0.0)[0, 1:].tolist()  # what it would say
    ids = samples_of.ancestral(parent.denoiser, [1, 2], 12, banned, temperature=0.0)
    with torch.no_grad():
        logits = parent.lm.model(ids).logits
    logits[..., [*banned, parent.lm.mask_token_id]] = -torch.inf
    assert torch.equal(ids[:, 1:], logits[:, :-1].argmax(-1))
    both = samples_of.ancestral(parent.denoiser, [1, 2], 40, temperature=1.0, top_p=0.9)
    alone = samples_of.ancestral(parent.denoiser, [2], 40, temperature=1.0, top_p=0.9)
    assert torch.equal(both[1:], alone)
    assert not torch.equal(both[0], both[1])


def test_unconditional_samples_follow_their_own_seeds(child):
    how = {"steps": 4, "sampler": "random", "temperature": 1.0}
    whole = samples_of.unconditional(child.denoiser, 3, 20, [5, 6, 7], forbidden=range(30), **how)
    assert torch.equal(whole[1:2], samples_of.unconditional(child.denoiser, 1, 20, [6], forbidden=range(30), **how))
    assert int(whole[:, 1:].min()) >= 30


def test_clock_readings_are_marked_as_seconds_and_lengths_beyond_the_context_as_such(child, parent, monkeypatch):
    runs = []
    monkeypatch.setattr(speed, "REPEATS", 1)
    filled, generated = speed.filled, speed.generated
    monkeypatch.setattr(speed, "filled", lambda *given: runs.append(filled(*given)))
    monkeypatch.setattr(speed, "generated", lambda *given: runs.append(generated(*given)))
    for subject in (child, parent):
        runs.clear()
        cells = speed.run(Trial(subject, limit=1))
        assert [len(one) for one in runs] == [n for n in (16, 32, 64) for _ in range(2)]
        done, beyond = cells[:3], cells[3:]
        assert all("seconds" in cell.metric and cell.value > 0 and not cell.items for cell in cells[:3])
        assert [cell.settings["positions"] for cell in done] == [16, 32, 64]
        assert [(cell.value, cell.note) for cell in beyond] == [(None, "beyond the context of 64")] * 3
        assert ("steps" in cells[0].settings) is not subject.autoregressive


def test_room_for_an_answer_leaves_room_for_a_question(child):
    assert writing.room(child, 16) == 16
    assert writing.room(child, 256) == (CONTEXT - 1) // 2


@pytest.mark.slow
def test_pocket_and_its_parent_take_every_part(shared):
    folder = shared / "data" / "eval"
    child, parent = subjects.opened("pocket"), subjects.opened("pocket-ar", parent=True)
    for part in (*WRITTEN, generation, speed):
        for subject in (child, parent):
            cells = part.run(Trial(subject, parent=parent, data=folder, limit=3))
            by_name(cells)
            assert all(cell.value is not None or "beyond" in cell.note for cell in cells)
            assert part.TITLE


def test_every_document_of_the_parts_has_what_they_read(folder):
    for name in ("triviaqa", "gsm8k_symbolic", *in_context.KINDS):
        for one in tasks.documents(tasks.load(name), folder):
            assert one["context"]
            assert one["continuation"].startswith(" ")
            assert one["answer"] in one["aliases"]
