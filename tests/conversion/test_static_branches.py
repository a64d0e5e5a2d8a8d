"""What is static beside spiking tensors: numbers that come from a spiking batch, and powers."""

import pytest
from wrapped import Wrapped, lossless

from cos_ext import ConversionError, convert

SPIKING_SIZES = {
    "shape[0]": lambda q: q.shape[0],
    "size()[0]": lambda q: q.size()[0],
    "floor division": lambda q: q.size(0) // 1,
    "product": lambda q: q.size(0) * 1,
    "of another number": lambda q: 2 * (q.shape[0] + 1) - 2,
    "numel": lambda q: q.numel() / 144,
}


@pytest.mark.parametrize("size", SPIKING_SIZES.values(), ids=SPIKING_SIZES)
def test_a_number_made_of_a_spiking_size_is_refused_in_what_is_static(size):
    """It would be T times what forward means by it."""

    def forward(m, x):
        q = m.act(m.conv(x))
        return m.head((q + m.conv(x / size(q))).flatten(1))

    with pytest.raises(ConversionError, match="truediv.*size of the batch of a spiking tensor"):
        convert(Wrapped(forward), timesteps=4)


def test_the_size_of_a_spiking_batch_may_stand_for_the_batch():
    def forward(m, x):
        q = m.act(m.conv(x))
        n, c, h, w = q.shape
        return m.head((q + m.conv(x).view(n, c, h, w)).flatten(1))

    lossless(Wrapped(forward))


@pytest.mark.parametrize("power", [lambda x: x**2, lambda x: 2**x, lambda x: x.pow(2)])
def test_a_static_power_keeps_its_batch(power):
    def forward(m, x):
        return m.head((m.act(m.conv(x)) + power(m.conv(x))).flatten(1))

    report = convert(Wrapped(forward), timesteps=4).report
    assert [entry.status for entry in report.entries if "pow" in entry.kind] == ["kept"]
