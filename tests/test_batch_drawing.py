"""The smallest batch of a failure, read from its text and drawn: which request is the victim, and what is beside it."""

from __future__ import annotations

import pytest

from samebits.reports.html.batch_drawing import DrawnRequest, draw_batch, parse_batch

from .html_pages import parsed


def drawn(told: str) -> tuple[str, list[str]]:
    """What a drawing says of itself, and its texts."""
    drawing = draw_batch(told)
    assert drawing is not None, f"{told} is not drawn"
    svg = parsed(str(drawing)).one("svg")
    return str(svg.attributes["aria-label"]), [words.text for words in svg.all("text")]


def test_the_request_that_both_sides_compute_is_the_victim() -> None:
    said, texts = drawn("[r1:q1c130] against [r1:q1c130 r1005:q16c256] with poison large and nan")
    assert said == (
        "One side computes request r1 with 1 query token over 131 keys; the other request r1 with 1 query token over "
        "131 keys, request r1005 with 16 query tokens over 272 keys. On both sides, and so the victim: r1. What "
        "differs besides: poison large and nan."
    )
    assert texts.count("▶ r1") == 2
    assert "r1005" in texts
    assert "16 q, 272 keys" in texts
    assert "16 q, 272 positions" in parsed(str(draw_batch("[r1:q16c256]", "position"))).text


def test_encoder_tokens_words_steps_and_what_is_left_out_are_told() -> None:
    batch = parse_batch("[r1:q4c66e77:full (3 more) r9:q2c-1] then 2 more then [r1:q1c0] against [r1:q5c66e77]")
    assert batch is not None
    left = batch.sides[0]
    assert [row.request.key if row.request else row.words for row in left] == [
        "first", 1, "3 more requests", 9, "2 more steps", "last", 1,
    ]  # fmt: skip
    assert left[1].request == DrawnRequest(1, 4, 66, 77, "full")
    assert left[1].request.keys == 147
    assert left[3].request is not None
    assert left[3].request.keys == 1, "there are fewer keys than queries"
    assert batch.victims == {1}


def test_what_is_wrong_by_itself_has_one_side_and_no_victim() -> None:
    said, texts = drawn("[r1:q1c130 r2:q2c0]")
    assert said.startswith("The batch computes request r1")
    assert "The batch" in texts
    assert not [words for words in texts if words.startswith("▶")]


@pytest.mark.parametrize("told", ["", "nothing", "[] against []", "[r1:q1c1]  against [x]"])
def test_what_cannot_be_read_is_not_drawn(told: str) -> None:
    assert draw_batch(told) is None


def test_a_request_without_a_token_and_one_of_a_billion_are_drawn() -> None:
    for told in ("[r1:q0c0] against [r1:q0c0 r2:q0c0]", "[r1:q1c999999999] against [r1:q1c999999999]"):
        drawn(told)
