"""
Offset spikes, layer by layer
=============================

A neuron's input over eight steps may ask for three spikes, and the neuron fires four: excitation
came early, inhibition late, and a spike that has left cannot be taken back. The difference ψ =
wanted - fired is its *offset spike*. Here we count them in a network and see what they do.
"""

import matplotlib.pyplot as plt

import cos_ext

model = cos_ext.models.resnet20(num_classes=10, in_channels=1).eval()
weights = cos_ext.data.ASSETS / "resnet20-fashion-mnist.safetensors"
cos_ext.models.load_weights(model, weights)
images = cos_ext.data.fashion_mnist().first(50)

# %%
# How many there are
# ------------------
# The shipped ResNet-20 runs without calibration for eight steps, on 50 images. In every layer
# :func:`cos_ext.offset_spike_report` compares the spikes fired with the spikes wanted. Then it asks
# what one iteration of the calibration would change, and what exact calibration would.
#
# The report draws itself. The first layer has no offset spikes, since its input is the same at
# every step. In the others up to one neuron in seven is wrong, almost always by a single spike.
# One iteration puts these right, all at once. The few that are off by two need a second.

network = cos_ext.convert(model, timesteps=8)
report = cos_ext.offset_spike_report(
    model, network, images.batches(50), iterations=1, progress=False
)
report.plot()
plt.show()

# sphinx_gallery_thumbnail_number = 2

# %%
# What they do
# ------------
# An offset spike is an error in the next layer's input, so errors add up with depth. The report
# also compares every neuron's count with the ANN's activation. Its QCFS activations have L = 8
# levels, so with eight steps the two can be equal.
#
# Without calibration a fifth to nearly a half of the counts in the later layers are wrong. With one
# iteration in every layer it is about one in ten at most. With exact calibration none is wrong:
# the spikes say what the ANN says.

figure, axes = plt.subplots(figsize=(8, 4.4), layout="constrained")
for label, settings, style in (
    ("exact calibration", {"rho": 8, "iterations": None}, "o-"),
    ("one iteration", {"rho": 8, "iterations": 1}, "s-"),
    ("not calibrated", {}, "^-"),
):
    network = cos_ext.convert(model, timesteps=8, **settings)
    report = cos_ext.offset_spike_report(
        model, network, images.batches(50), iterations=0, progress=False
    )
    equal = [100 * layer.accumulated.equal_share for layer in report.layers]
    axes.plot(equal, style, label=label)
axes.set_xticks(range(len(equal)), [layer.site for layer in report.layers], rotation=90)
axes.set(ylim=(40, 102), ylabel="neurons with the ANN's count (%)", xlabel="layer, input first")
axes.legend(loc="lower left")
plt.show()
