"""
A plain-ReLU network with max pooling
=====================================

The demo's network was trained with its conversion in mind. This one was not: it has ReLU and max
pooling. It needs two things more, a threshold for every ReLU and a rule for its max poolings.
"""

from dataclasses import replace

import matplotlib.pyplot as plt
import torch
from torch import nn

import cos_ext

# %%
# A small network, trained for a moment
# -------------------------------------
# Only Fashion-MNIST's test images ship with the package. We train on 8,000 of them and test on the
# other 2,000. Published accuracies have 60,000 to train on and are not to be compared.

torch.manual_seed(0)
images = cos_ext.data.fashion_mnist()
train = images.first(8000)
test = replace(images, images=images.images[8000:], labels=images.labels[8000:])


def block(a, b):
    return nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)


head = nn.Flatten(), nn.Linear(32 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10)
model = nn.Sequential(*block(1, 16), *block(16, 32), *head)
batches, optimiser = list(train.batches(100)), torch.optim.Adam(model.parameters(), lr=0.003)
for x, y in 4 * batches:  # four times through the data
    optimiser.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimiser.step()
model.eval()
ann = sum(int((model(x).argmax(1) == y).sum()) for x, y in test.batches(100)) / len(test)

# %%
# Thresholds
# ----------
# A neuron hands on at most θ per step, so θ is a ceiling. If it is low, large activations are cut
# off. If it is high, little is left of small ones: with T = 8 there are nine values from 0 to θ.
# "max" takes the largest of 8,000 images (100 are drawn), "percentile" leaves out the largest 0.1%,
# "mse" takes the θ with the least squared error.

figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
activations = model[:7](batches[0][0]).detach().flatten()
axes.hist(activations[activations > 0], bins=80, color="lightgray", log=True)
for method, colour in (("max", "tab:red"), ("percentile", "tab:orange"), ("mse", "tab:blue")):
    options = {"method": method, "timesteps": 8, "progress": False}
    thresholds = cos_ext.calibrate_thresholds(model, batches, **options)
    axes.axvline(float(thresholds["6"]), color=colour, label=f'"{method}"')
axes.set(xlabel="activation of the second ReLU", ylabel="number (log scale)")
axes.legend(title="threshold θ", loc=(0.62, 0.6))
plt.show()

# %%
# Max pooling
# -----------
# All spikes are equal, so the largest of a window says little. ``max_pool="before"`` pools the
# currents instead, before the neurons: with exact calibration (rho = 8) nothing is lost but what
# eight levels lose. Without (rho = 0), and with "spike" or "avg", it is an approximation. An answer
# at step t has a latency of rho + t steps. ``convert`` does not choose by itself.

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for pool, rho in (("before", 8), ("before", 0), ("spike", 8), ("avg", 8)):
    options = {"timesteps": 8, "rho": rho, "iterations": None, "thresholds": thresholds}
    network = cos_ext.convert(model, max_pool=pool, **options)
    result = cos_ext.evaluate(network, test.batches(100), progress=False)
    accuracy = [100 * a for a in result.accuracy]
    axes.plot(result.latency, accuracy, "o-", label=f'"{pool}", rho = {rho}')
axes.axhline(100 * ann, color="black", linestyle=":", label="ANN")
axes.set(xlabel="latency in time-steps, rho + t", ylabel="accuracy (%)", ylim=(60, 90))
axes.legend()
plt.show()
