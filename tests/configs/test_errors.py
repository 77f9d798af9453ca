"""Mistakes are told together: as many lines as a person reads, then a count."""

import pytest

from scanfoundry.configs.errors import MOST_SHOWN, Mistakes, UserError, UserErrors


def collected(*texts: str) -> Mistakes:
    mistakes = Mistakes("the list l.csv")
    for text in texts:
        with mistakes.each():
            raise UserError(text)
    return mistakes


def test_none_is_no_error_and_one_is_itself():
    collected().raise_if_any()
    with pytest.raises(UserError, match=r"^a\.png is gone$") as caught:
        collected("a.png is gone", "a.png is gone").raise_if_any()
    assert not isinstance(caught.value, UserErrors)


def test_several_are_a_number_and_a_line_each():
    with pytest.raises(UserErrors) as caught:
        collected("a\nb is gone", "c is gone").raise_if_any()
    assert str(caught.value).split("\n") == ["2 mistakes in the list l.csv:", "  a b is gone", "  c is gone"]


def test_more_than_are_read_are_counted():
    with pytest.raises(UserErrors) as caught:
        collected(*(f"{number} is gone" for number in range(MOST_SHOWN + 3))).raise_if_any()
    lines = str(caught.value).split("\n")
    assert (lines[0], lines[-1], len(lines)) == ("23 mistakes in the list l.csv:", "  and 3 more", MOST_SHOWN + 2)
    outer = collected("another")
    outer.add(caught.value)
    assert len(outer) == MOST_SHOWN + 4


def test_what_was_kept_is_told_instead_of_what_follows_from_it():
    mistakes = collected("a is gone")
    with pytest.raises(UserError, match="a is gone"), mistakes.instead():
        raise UserError("no test case is left")
    with pytest.raises(UserError, match="no test case"), collected().instead():
        raise UserError("no test case is left")
    with mistakes.instead():
        pass
    with pytest.raises(ZeroDivisionError), mistakes.instead():
        raise ZeroDivisionError
