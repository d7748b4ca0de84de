"""Answers in what a model wrote: found, compared, voted on."""

import random

import pytest

from diffulm.evaluation import answers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,000", "1000"),
        ("$18", "18"),
        ("18.0", "18"),
        ("18.", "18"),
        ("He has 12 apples.", "12"),
        ("The answer is $1,234.50 .", "1234.5"),
        ("-3", "-3"),
        ("−3", "-3"),
        ("-$5", "-5"),
        ("a half is .5", "0.5"),
        ("3-4", "4"),  # a difference, not a negative number
        ("(9)-2", "2"),
        ("5 - 3 = 2", "2"),
        ("0.50", "0.5"),
        ("-0", "0"),
        ("10,000,000 and 007", "7"),
        ("12,34", "34"),  # no thousands
        ("1.8333333333333335", "1.8333333333333335"),
        ("99999999999999999999", "99999999999999999999"),
        ("no number", None),
        ("", None),
        ("$", None),
    ],
)
def test_the_last_number_in_one_way_of_writing(text, value):
    assert answers.number(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (" <<16-3-4=9>> <<9*2=18>> #### 18", "18"),
        ("#### 17 no, wait #### 18", "18"),  # the last mark
        ("#### $1,800. And 5 more", "1800"),  # the first number behind it
        ("####-4", "-4"),
        ("the answer is 18", None),  # no mark, no answer
        ("18 ####", None),
        ("18 #### none", None),
        ("### 18", None),
    ],
)
def test_the_number_behind_the_last_mark(text, value):
    assert answers.marked(text) == value


@pytest.mark.parametrize(
    ("said", "right", "same"),
    [
        ("18", "18.0", True),
        ("18", "18", True),
        ("-18", "18", False),
        ("1.83", "1.8333333333333335", True),
        ("1.84", "1.8333333333333335", False),
        ("1.8", "1.8333333333333335", False),  # one decimal says too little
        ("2", "1.8333333333333335", False),
        ("0.75", "0.75", True),
        ("17.999", "18", False),  # only the right one's decimals may be rounded
        ("0.00", "1e-05", True),
        (None, "0", False),
    ],
)
def test_numbers_are_one_when_equal_or_rounded_to_what_was_said(said, right, same):
    assert answers.same_number(said, right) is same


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (" C", "C"),
        ("C.", "C"),
        (" (D) because A", "D"),
        ("B 12", "B"),
        ("The answer is B", "B"),
        ("the answer: (A)", "A"),
        (" A", "A"),
        ("A.", "A"),
        ("A number below 4", None),  # the article
        ("Because of D", None),
        ("CD", None),
        ("E", None),
        ("", None),
    ],
)
def test_the_option_that_is_named(text, value):
    assert answers.letter(text) == value


def test_as_many_options_as_there_are():
    assert answers.letter(" E", "ABCDE") == "E"
    assert answers.letter("(D)", "ABC") is None


def test_texts_are_compared_without_case_punctuation_articles_and_space():
    assert answers.normalised("  The  Beatles! ") == "beatles"
    assert answers.normalised("A.A. Milne’s") == "aa milnes"
    assert answers.normalised("an apple, the pear and a theory") == "apple pear and theory"
    assert answers.exact("The Onion.", ["Onions", "onion"])
    assert not answers.exact("red onion", ["onion"])
    assert answers.contains("it is a red onion", ["onion"])
    assert not answers.contains("on ion", ["onion"])
    assert not answers.exact(None, ["onion"])
    assert not answers.contains(None, ["onion"])


def test_an_answer_that_is_nothing_when_normalised_is_not_in_every_text():
    assert answers.known(["The", "!!!", "The Who", "the who"]) == ("who",)
    assert not answers.contains("anything", ["The", "!!!"])
    assert not answers.exact("", ["The"])


def test_the_majority_and_of_equals_the_first():
    assert answers.majority(["3", "7", "7"]) == "7"
    assert answers.majority(["3", "7", "9"]) == "3"
    assert answers.majority(["3", "7", "7", "3"]) == "3"
    assert answers.majority([None, None, "7"]) == "7"  # what cannot be read does not vote
    assert answers.majority([None, None, None]) is None
    assert answers.majority([]) is None


def test_the_majority_is_among_the_most_frequent_whatever_comes():
    draw = random.Random(0)
    for _ in range(200):
        votes = [draw.choice(["1", "2", "3", None]) for _ in range(draw.randint(1, 6))]
        best = answers.majority(votes)
        valid = [one for one in votes if one is not None]
        if not valid:
            assert best is None
            continue
        most = max(map(valid.count, valid))
        assert best == next(one for one in valid if valid.count(one) == most)


def test_hit_at_k_looks_at_the_first_k_and_at_no_fewer():
    assert answers.hit([False, False, True], 3) is True
    assert answers.hit([False, False, True], 2) is False
    assert answers.hit([False, False, False], 3) is False
    with pytest.raises(ValueError, match="hit@3 of 2"):
        answers.hit([True, True], 3)
