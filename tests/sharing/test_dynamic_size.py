import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from scripts.networks import PadAndCrop
from scripts.sharing.dynamic_size import AveragingMatrixPool, for_multiples_of_stride


@pytest.mark.parametrize("size", [(6, 6), (7, 13), (3, 64), (1, 5)])
@pytest.mark.parametrize("bins", [2, 3, 6])
def test_pooling_is_torchs_for_any_size(bins, size):
    x = torch.randn(2, 4, *size)
    torch.testing.assert_close(AveragingMatrixPool(bins)(x), nn.AdaptiveAvgPool2d(bins)(x))


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (5, 2, 1), (5, 1, 2), (1, 2, 1)])
def test_padding_is_the_same_for_multiples_of_the_stride(kernel, stride, dilation):
    conv = Conv2dSame(4, 4, kernel, stride, dilation=dilation, groups=2)
    x = torch.randn(2, 4, 12, 18)
    torch.testing.assert_close(for_multiples_of_stride(conv)(x), conv(x))


def test_parts_are_replaced_in_a_copy_alone():
    pools = nn.Sequential(nn.AdaptiveAvgPool2d((3, 3)), nn.AdaptiveAvgPool2d(1))
    network = PadAndCrop(nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), pools), 4)
    copy = for_multiples_of_stride(network)
    kinds = [type(module) for module in copy.modules()]
    assert AveragingMatrixPool in kinds and PadAndCrop not in kinds and kinds.count(nn.AdaptiveAvgPool2d) == 1
    assert network.network[1] is pools and isinstance(pools[0], nn.AdaptiveAvgPool2d)
