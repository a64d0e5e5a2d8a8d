"""
The demo's network, step by step
================================

This is ``make demo``, slowed down. A trained network becomes a spiking one, and we watch it answer.

A neuron of an ordinary network (ANN) hands on a number. A spiking neuron hands on spikes: at each
time-step one spike of height θ, or none. Their mean over the steps stands for the number.
"""

import matplotlib.pyplot as plt
import torch

import cos_ext

# %%
# Conversion
# ----------
# A trained ResNet-20 ships with the package. Its activations are QCFS: a ReLU with a ceiling θ and
# L = 8 levels. Fashion-MNIST's 10,000 test images ship, too.
#
# One call makes the spiking network. The model itself is not changed. The report has a line for
# every module and every call of an activation; here are the first ten lines.

model = cos_ext.models.resnet20(num_classes=10, in_channels=1).eval()
weights = cos_ext.data.ASSETS / "resnet20-fashion-mnist.safetensors"
cos_ext.models.load_weights(model, weights)
test = cos_ext.data.fashion_mnist()

T = 8
network = cos_ext.convert(model, timesteps=T)
print("\n".join(str(network.report).splitlines()[:10]))

# %%
# The spikes
# ----------
# We show the network the first test image and look at one channel of its second layer of neurons.
# A black dot is a spike. One step is a rough drawing of the boot. Their sum has shades.

image = test.normalise(test.images[:1])
seen = []
node = network.nodes()["stages.0.0.act1"]
hook = node.register_forward_hook(lambda node, inputs, output: seen.append(output.clone()))
network(image)
hook.remove()
spikes = seen[0][:, 12] > 0  # [T, height, width], of channel 12

figure, axes = plt.subplots(2, 5, figsize=(9, 4), layout="constrained")
titles = ["the image", *(f"t = {t}" for t in range(1, T + 1)), "sum over t"]
for panel, picture, title in zip(axes.flat, [test.images[0, 0], *spikes, spikes.sum(0)], titles):
    panel.imshow(picture, cmap="gray_r")
    panel.set(title=title, xticks=[], yticks=[])
plt.show()

# %%
# The answer
# ----------
# The network gives one output per time-step. Its answer at step t is the mean of those so far.
# Without calibration it takes the boot for a sneaker until step 5. With rho = 4 every layer watches
# its input for four steps first. Neurons that fired too often, or too rarely, then start from a
# corrected potential: the boot is seen from the first step on. Dotted: what the ANN says. Gray: the
# other eight classes.

answer, steps = model(image)[0].detach(), torch.arange(1, T + 1)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
for panel, rho, title in zip(axes, (0, 4), ("not calibrated", "calibrated, rho = 4")):
    network.rho = rho
    scores = network(image)[:, 0].cumsum(0) / steps[:, None]
    panel.plot(steps, scores, color="lightgray")
    for number, colour in ((9, "tab:blue"), (7, "tab:orange")):
        panel.plot(steps, scores[:, number], "o-", color=colour, label=test.classes[number])
        panel.axhline(answer[number], color=colour, linestyle=":")
    panel.set(title=title, xlabel="time-step t")
axes[0].set_ylabel("mean output so far, by class")
axes[1].legend(loc=(0.66, 0.32))
plt.show()
