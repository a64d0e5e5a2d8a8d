"""
Energy
======

A spike needs no multiplication. Where it arrives a weight is added; where none arrives nothing is
done. We count how much work that saves, and how much of it calibration takes.
"""

import matplotlib.pyplot as plt

import cos_ext

model = cos_ext.models.resnet20(num_classes=10, in_channels=1).eval()
weights = cos_ext.data.ASSETS / "resnet20-fashion-mnist.safetensors"
cos_ext.models.load_weights(model, weights)
test = cos_ext.data.fashion_mnist()

# %%
# Counting
# --------
# ``energy_report`` runs a network and counts, per image, the additions that its spikes cause. An
# addition is taken as 0.9 pJ, a multiplication with its addition as 4.6 pJ (float32 at 45 nm).
# This is arithmetic alone. Memory is left out; in hardware it can cost more than all of this.

network = cos_ext.convert(model, timesteps=8, rho=4)
batches = test.first(100).batches(50)
report = network.energy_report(batches, progress=False)
print(str(report).split("\n\n")[3])

# %%
# Layer by layer
# --------------
# The ANN multiplies once for each input. The spiking network adds once for each spike, at every
# step, and here it takes eight steps: four to watch, four to answer. It still needs less where the
# inputs spike, since few do. The first layer reads the image, once, as the ANN does. The last (fc,
# too small to see) gets averages, real numbers, and needs more.

t = 4
energy = {"AC": report.ac_energy, "MAC": report.mac_energy}  # pJ
ours = [1e-6 * layer.operations[t - 1] * energy[layer.operation] for layer in report.layers]
theirs = [1e-6 * layer.macs * energy["MAC"] for layer in report.layers]
names = [layer.site.removeprefix("stages.") for layer in report.layers]

figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
axes.bar(names, theirs, width=0.8, color="lightgray", label="ANN")
axes.bar(names, ours, width=0.5, label=f"spiking, rho = 4, t = {t}")
axes.tick_params(axis="x", rotation=90)
axes.set(xlabel="layer, input first", ylabel="energy per image (µJ)", ylim=(0, 10))
axes.legend(ncols=2)
plt.show()

# sphinx_gallery_thumbnail_number = 2

# %%
# What accuracy costs
# -------------------
# Each line goes from t = 1 (22% without calibration, below the picture) to t = 8. The first answers
# without calibration are cheap and poor. With
# it the first answer costs as much as eight steps without, and is at least as good: the watched
# steps are paid for. Hardware that keeps the currents of these steps need not add them twice; then
# the same answer costs half as much. A 3-bit ANN can tell apart what four steps can; it is the
# fairer one to compare with. Its accuracy was not measured here, so it is a line, not a point.

figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
for rho, label in ((0, "not calibrated"), (4, "rho = 4")):
    network.rho = rho
    found = cos_ext.evaluate(network, test.first(500).batches(50), progress=False)
    accuracy = [100 * a for a in found.accuracy]
    used = network.energy_report(batches, progress=False)
    axes.plot([1e6 * j for j in used.snn_joules], accuracy, "o-", ms=4, label=label)
axes.plot(
    [1e6 * j for j in used.kept_joules], accuracy, "o-", ms=4, label=f"{label}, currents kept"
)
axes.axvline(1e6 * report.quantised_joules, color="gray", linestyle="--", label="3-bit ANN")
right = sum(int((model(x).argmax(1) == y).sum()) for x, y in test.first(500).batches(50))
axes.plot(1e6 * report.ann_joules, right / 500 * 100, "k*", ms=12, label="ANN")
axes.set(xlabel="energy per image (µJ)", ylabel="accuracy (%)", xlim=(0, 140), ylim=(60, 100))
axes.legend(loc=(0.58, 0.08))
plt.show()
