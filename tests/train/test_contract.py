"""What an objective may return, and what it may do to the groups that it is given."""

from __future__ import annotations

import pytest
import torch

from prefkit.errors import PluginError
from prefkit.train.objectives._contract import loss_of
from prefkit.types import Errors, Groups


def groups():
    numbers = torch.arange(4)
    return Groups(numbers % 2, numbers // 2, 1.0 - numbers // 2, torch.ones(4), torch.zeros(4), torch.ones(4))


class Fixed:
    def __init__(self, found):
        self.found = found

    def loss(self, *given):
        return self.found


LOSS = torch.ones(2)


@pytest.mark.parametrize(
    "found, said",
    [
        (LOSS, r"returned a Tensor of shape \(2,\); it must return \(loss"),
        ((LOSS,), "returned a tuple"),
        ((LOSS, None), "returned a tuple"),
        (None, "returned None"),
        ((torch.tensor(1.0), {}), r"its loss is of shape \(\)"),
        ((torch.ones(1), {}), r"its loss is of shape \(1,\)"),
        ((torch.ones(4), {}), r"its loss is of shape \(4,\)"),
        ((torch.ones(2, 1), {}), r"its loss is of shape \(2, 1\)"),
        (([1.0, 1.0], {}), "its loss is a list"),
        ((torch.ones(2, dtype=torch.int64), {}), "its loss is torch.int64"),
        ((LOSS, {"margin": torch.tensor(1.0)}), r"its margin is of shape \(\)"),
        ((LOSS, {"margin": 1.0}), "its margin is a float"),
    ],
)
def test_a_loss_of_another_shape_is_refused(found, said):
    with pytest.raises(PluginError, match=f"objective Fixed.*{said}"):
        loss_of(Fixed(found), 2, Errors(torch.ones(4)), None, groups())


def test_a_loss_a_group_passes_with_its_gradient():
    loss = torch.ones(2, requires_grad=True) * 2
    found, metrics = loss_of(Fixed((loss, {"margin": torch.zeros(2, dtype=torch.bool)})), 2)
    assert found is loss and list(metrics) == ["margin"]


def test_groups_are_lent_to_an_objective_of_somebody():
    class Flips:
        def loss(self, policy, reference, given):
            given.weight.zero_()
            given.rank = None
            return LOSS, {}

    mine = groups()
    loss_of(Flips(), 2, Errors(torch.ones(4)), None, mine)
    assert mine.weight.tolist() == [1.0] * 4 and mine.rank.tolist() == [0, 0, 1, 1]


def test_a_loss_without_a_gradient_is_refused_where_the_network_has_one():
    policy = Errors(torch.ones(4, requires_grad=True))
    with pytest.raises(PluginError, match="objective Fixed: its loss has no gradient"):
        loss_of(Fixed((LOSS, {})), 2, policy, None, groups())
    with torch.no_grad():
        assert loss_of(Fixed((LOSS, {})), 2, policy, None, groups())[0] is LOSS
