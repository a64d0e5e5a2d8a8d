"""
Paying for spikes
=================

Most spikes are 0. On a CPU cos_ext leaves the zeros out of convolutions and linear layers. We look
at how many there are, and at what a layer and a network take when there are fewer or more.
"""

import time

import matplotlib.pyplot as plt
import torch

import cos_ext
from cos_ext import functional as F

model = cos_ext.models.resnet20(num_classes=10, in_channels=1).eval()
weights = cos_ext.data.ASSETS / "resnet20-fashion-mnist.safetensors"
cos_ext.models.load_weights(model, weights)
images, _ = next(iter(cos_ext.data.fashion_mnist().batches(16)))
network = cos_ext.convert(model, timesteps=8, rho=4)

# %%
# How many inputs are not 0
# -------------------------
# A hook sees what a layer is given. The first convolution reads the image and is not among these.

density = {}
for layer in network.plan().layers:
    if layer.runs == "events":
        network.module.get_submodule(layer.site).register_forward_pre_hook(
            lambda module, args, site=layer.site: density.update(
                {site: (args[0] != 0).float().mean().item()}
            )
        )
network(images)
names = [site.removeprefix("stages.") for site in density]

figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
axes.bar(names, density.values())
axes.tick_params(axis="x", rotation=90)
axes.set(xlabel="layer, input first", ylabel="share of inputs that are not 0", ylim=(0, 0.5))
plt.show()

# %%
# What a layer takes
# ------------------
# Drawn spikes at several densities. The dense library takes the same time for all of them.
# ``spike_conv2d`` also packs its weights here, at every call; a network does that once.


def median_ms(call, *arguments):
    times = []
    for _ in range(7):
        start = time.perf_counter()
        call(*arguments)
        times.append(1e3 * (time.perf_counter() - start))
    return sorted(times)[3]


shares = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
weight = torch.randn(64, 64, 3, 3).to(memory_format=torch.channels_last)
events, dense = [], []
for share in shares:
    spikes = (torch.rand(32, 64, 28, 28) < share).float().to(memory_format=torch.channels_last)
    events.append(median_ms(F.spike_conv2d, spikes, weight, None, 1, 1))
    dense.append(median_ms(torch.nn.functional.conv2d, spikes, weight, None, 1, 1))

figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
axes.plot(shares, events, "o-", label="by events")
axes.plot(shares, dense, "o-", color="gray", label="dense")
axes.set(xlabel="share of inputs that are not 0", ylabel="time (ms)", ylim=(0, None))
axes.legend()
plt.show()

# %%
# What a network takes
# --------------------
# The same images, with dense convolutions and by events. These are times of one machine;
# :doc:`/results/speed` has ratios that were measured with care.

network = cos_ext.convert(model, timesteps=8, rho=4)
found = {}
for convolution in ("dense", "auto"):
    network.convolution = convolution
    with torch.inference_mode():
        network(images)  # packs weights
        found[convolution] = median_ms(network, images)

figure, axes = plt.subplots(figsize=(6, 1.8), layout="constrained")
axes.barh(list(found), list(found.values()), color=["gray", "C0"])
axes.set(xlabel="time for 16 images (ms)", ylabel="convolution")
plt.show()
