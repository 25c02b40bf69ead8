"""Annotations are enforced in the tests: at the first calls of a function, and at some of many."""

import pytest
import torch
from jaxtyping import TypeCheckError

from mechinterp.models.layer import attention_pattern
from mechinterp.theory.kinetics import Kinetics
from tests.type_checks import EVERY, FIRST, Calls, sampled

WRONG = torch.zeros(3, 3)  # scores are [batch, head, query, key]


def test_an_argument_of_a_wrong_shape_is_refused():
    with pytest.raises(TypeCheckError, match="attention_pattern"):
        attention_pattern(WRONG)
    assert attention_pattern(WRONG[None, None]).sum() == pytest.approx(3)


def test_a_field_of_a_wrong_type_is_refused():
    with pytest.raises(TypeCheckError, match="Kinetics"):
        Kinetics("8")  # pyright: ignore[reportArgumentType]


def test_first_calls_are_all_checked_and_of_many_some(monkeypatch):
    seen = []
    function = sampled(lambda n: None, lambda: seen.append)
    for number in range(1, 61):
        function(number)
    later = [number for number in range(FIRST + 1, 61) if number % EVERY == 0]
    assert seen == [*range(1, FIRST + 1), *later]
    monkeypatch.setattr(Calls, "all_checked", True)
    for number in range(61, 70):
        function(number)
    assert seen[-9:] == [*range(61, 70)]
    monkeypatch.setattr(Calls, "all_checked", False)
    function(70)
    function(71)
    monkeypatch.setattr(Calls, "test", Calls.test + 1)
    function(72)
    assert seen[-3:] == [69, 70, 72]
