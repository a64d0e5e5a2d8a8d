"""
Accuracy against latency, all methods
=====================================

Calibration is not free. Who watches for rho steps answers rho steps later. So methods should be
compared at equal *latency*: the steps that pass until the answer is there, rho + t.
"""

from dataclasses import replace

import matplotlib.pyplot as plt
import torch

import cos_ext

model = cos_ext.models.resnet20(num_classes=10, in_channels=1).eval()
weights = cos_ext.data.ASSETS / "resnet20-fashion-mnist.safetensors"
cos_ext.models.load_weights(model, weights)
images = cos_ext.data.fashion_mnist()

# %%
# One network, seven ways to run it
# ---------------------------------
# All run the shipped ResNet-20 on the first 500 test images. Two methods fit something beforehand,
# without labels. They get 128 other images, the last of the test set.

test = images.first(500)
others = replace(images, images=images.images[-128:], labels=images.labels[-128:]).batches(64)

light = cos_ext.convert(model, timesteps=8)
cos_ext.fit_light(light, model, others, progress=False)
static = cos_ext.convert(model, timesteps=8, rho=4)
cos_ext.fit_v_init(static, others, progress=False)


def watching(**settings):
    return cos_ext.convert(model, timesteps=8, rho=4, **settings)


networks = {
    "none": (cos_ext.convert(model, timesteps=12), "tab:gray"),
    "light: a current per channel": (light, "tab:olive"),
    "static: a potential per neuron": (static, "tab:green"),
    "SRP": (watching(calibration="srp"), "tab:red"),
    "COS, one iteration": (watching(), "tab:blue"),
    "COS, spikes first (parallel)": (watching(calibration="parallel"), "tab:purple"),
    "COS, spikes spread evenly": (watching(emission="even"), "tab:orange"),
}

# %%
# What they reach
# ---------------
# Dashed lines do not watch and answer from step 1. The others watch four steps: their first point
# stands at latency 5. Left is everything, right the top.
#
# Up to latency 4 only those without watching have an answer. Fitting beforehand helps them from
# step 2 on. At 5 COS joins, and at once is near where it ends. SRP watches as long, but needs some
# steps more. COS is shown in three orders of the spikes; the paper's own has one iteration.
#
# Differences below a point mean nothing on 500 images. The whole test set: :doc:`/results/index`.

figure, panels = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
for name, (network, colour) in networks.items():
    result = cos_ext.evaluate(network, test.batches(50), progress=False)
    style = {"color": colour, "linestyle": "-" if network.watch_steps else "--", "label": name}
    for axes in panels:
        axes.plot(result.latency, [100 * a for a in result.accuracy], "o", ms=4, **style)
with torch.no_grad():
    ann = 100 * sum(int((model(x).argmax(1) == y).sum()) for x, y in test.batches(50)) / len(test)
for axes, limits, title in zip(panels, ((0, 100), (85, 97)), ("all", "above 85%")):
    axes.axhline(ann, color="black", linestyle=":", label="ANN")
    axes.set(ylim=limits, title=title, xlabel="latency (time-steps)", ylabel="accuracy (%)")
panels[0].legend(loc="lower right")
plt.show()
