from __future__ import annotations

import pytest
import torch

from offon.algorithms.choices import check_choice
from offon.algorithms.stacked import look_up, put_back_


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 2)])
def test_each_replica_looks_up_in_its_own_table(shape):
    table = torch.arange(3 * 5 * 2.0).view(3, 5, 2)
    numbers = torch.randint(0, 5, shape, generator=torch.Generator().manual_seed(0))
    found = look_up(table, numbers)
    assert found.shape == (*shape, 2)
    for replica in range(3):
        assert torch.equal(found[replica], table[replica][numbers[replica]])


def test_gradients_of_a_look_up_stay_in_the_replicas_own_table():
    table = torch.zeros(2, 3, 1, requires_grad=True)
    look_up(table, torch.tensor([[0, 0], [2, 1]]))[0].sum().backward()
    assert table.grad is not None and table.grad[..., 0].tolist() == [[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_replicas_that_do_not_move_stand_where_they_stood_and_addresses_stay():
    before = [torch.zeros(2, 3), torch.zeros(2, 3, 1)]
    after = [torch.ones(2, 3), torch.ones(2, 3, 1)]
    places = [each.data_ptr() for each in after]
    put_back_(after, before, torch.tensor([True, False]))
    for each in after:
        assert (each[0] == 1).all() and (each[1] == 0).all()
    assert [each.data_ptr() for each in after] == places


def test_another_word_than_the_choices_is_refused_with_them():
    check_choice("kind", "a", ("a", "b"))
    with pytest.raises(ValueError, match="expected kind among a, b, got 'c'"):
        check_choice("kind", "c", ["a", "b"])
