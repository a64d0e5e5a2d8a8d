"""
Fine-tuning for one step, or two
================================

A calibrated network answers after rho + t steps. We train the converted network as it spikes, so
that it answers after T, and look at what a few seconds of that give.
"""

import matplotlib.pyplot as plt
import torch

import cos_ext

torch.manual_seed(0)
model = cos_ext.models.resnet20(num_classes=10, in_channels=1).eval()
weights = cos_ext.data.ASSETS / "resnet20-fashion-mnist.safetensors"
cos_ext.models.load_weights(model, weights)

# %%
# Images to train on
# ------------------
# Only the test set ships with cos_ext. So we train on 1,200 of its images and test on 400 others.
# The ANN has seen none of them. In earnest one takes the training set.

images = cos_ext.data.fashion_mnist()
test = images.first(400).batches(50)
train = images.split(1200)[1]
batches = train.batches(50, shuffle=True, augment=True)

# %%
# Two networks that learn
# -----------------------
# ``trainable=True`` gives weights, thresholds and initial potentials gradients. BatchNorm stays as
# it is, apart from the convolutions. The ANN is the teacher.

tuned = {}
for steps in (1, 2):
    network = cos_ext.convert(model, timesteps=steps, trainable=True, fold_batchnorm="frozen")
    tuned[steps] = cos_ext.fine_tune(
        network, batches, epochs=1, teacher=model, test_batches=test, progress=False
    )
    print(f"T = {steps}\n{tuned[steps]}\n")

# %%
# Beside calibration
# ------------------
# Without calibration the first answers are poor. With it they are good at once, after the four
# steps that it watches. The fine-tuned networks answer before that.

figure, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
for name, rho, colour in (("converted", 0, "tab:gray"), ("calibrated, rho = 4", 4, "tab:blue")):
    network = cos_ext.convert(model, timesteps=8, rho=rho)
    result = cos_ext.evaluate(network, test, progress=False)
    accuracy = [100 * a for a in result.accuracy]
    axes.plot(result.latency, accuracy, "o-", ms=4, color=colour, label=name)
points = [100 * result.accuracy for result in tuned.values()]
axes.plot(tuned.keys(), points, "s", ms=7, color="tab:red", label="fine-tuned for T steps")
with torch.no_grad():
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in test)
axes.axhline(right / 4, color="black", linestyle=":", label="ANN")
axes.set(xlabel="latency (time-steps)", ylabel="accuracy (%)", ylim=(0, 100))
axes.legend(loc="lower right")
plt.show()
