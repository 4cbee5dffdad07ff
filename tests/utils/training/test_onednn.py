"""Gradients that oneDNN gets wrong, or crashes at, on CPUs with AVX2 and no AVX-512."""

import pytest
import torch
from torch import nn

from models.elastic.layers import ElasticConv2d
from tests.models.elastic_kinds import dim
from utils.training.onednn import narrow_maps_contiguous

torch.set_num_threads(1)


def conv(kind):
    torch.manual_seed(0)
    if kind == "plain":
        return nn.Conv2d(4, 8, 1, stride=2, bias=False)
    net = ElasticConv2d(dim("in", 12, 4), dim("w", 16, 8), dim("k", 3, 1), stride=2)
    net.set_arch({"in": 4, "w": 8, "k": 1})
    return net


@pytest.mark.parametrize("kind", ["plain", "elastic"])
def test_a_narrow_strided_pointwise_convolution_learns_what_the_sums_say(kind):
    net = conv(kind).to(memory_format=torch.channels_last)
    x = torch.randn(12, 4, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
    with narrow_maps_contiguous(net):
        for _ in range(20):  # a workspace that was written past shows after a while
            net.weight.grad = None
            y = net(x)
            y.backward(torch.ones_like(y))
    # d(sum of y) / dw[o, i] = the sum of the places that the stride takes, for every o
    taken = x.detach()[:, :, ::2, ::2].sum((0, 2, 3))
    middle = net.weight.shape[2] // 2
    found = net.weight.grad[:8, :4, middle, middle]
    torch.testing.assert_close(found, taken.expand(8, 4), rtol=1e-4, atol=1e-3)
    assert "_conv_forward" not in net.__dict__
