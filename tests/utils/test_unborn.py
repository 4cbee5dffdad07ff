"""Networks that only have shapes."""

import torch
from torch import nn

from models.networks import build, open_any_space
from utils.unborn import without_numbers


def test_it_has_the_shapes_of_the_network_and_draws_nothing():
    space = open_any_space("models/detnas_small.yaml", nc=3)
    before = torch.get_rng_state()
    with without_numbers():
        bare = build(space, space.default())
    assert torch.equal(torch.get_rng_state(), before)
    whole = build(space, space.default())
    assert {k: v.shape for k, v in bare.state_dict().items()} == {
        k: v.shape for k, v in whole.state_dict().items()
    }
    assert {v.device.type for v in bare.state_dict().values()} == {"meta"}


def test_outside_everything_is_drawn_as_ever():
    torch.manual_seed(0)
    expected = nn.Linear(3, 2).weight
    with without_numbers():
        nn.Linear(3, 2)
    torch.manual_seed(0)
    assert torch.equal(nn.Linear(3, 2).weight, expected)
