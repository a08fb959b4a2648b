"""The convolutional nets of the zoo in PyTorch, their submodules named as Flax names them.

So one rule converts weights, and anything of their shapes: `to_torch`.
"""

import itertools

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from jaxlimit.lab.torch_layout import renamed


def to_torch(*trees) -> dict[str, torch.Tensor]:
    """Carry Flax leaves over to a state dict."""
    return {name: torch.from_numpy(array) for name, array in renamed(*trees).items()}


def load(model: nn.Module, *trees) -> nn.Module:
    """Put Flax variables into `model`, in their precision and in evaluation mode."""
    state = to_torch(*trees)
    model = model.to(next(iter(state.values())).dtype).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return model


def hessian_product(model: nn.Module, images, labels, *tangent) -> dict[str, torch.Tensor]:
    """Multiply the Hessian of the mean cross-entropy with a tangent, by differentiating twice."""
    names, params = zip(*model.named_parameters(), strict=True)
    loss = F.cross_entropy(model(images), labels)
    gradient = torch.autograd.grad(loss, params, create_graph=True)
    along = [to_torch(*tangent)[name] for name in names]
    return dict(zip(names, torch.autograd.grad(gradient, params, along), strict=True))


class Head(nn.Module):
    def __init__(self, features, num_classes):
        super().__init__()
        self.Dense_0 = nn.Linear(features, num_classes)

    def forward(self, x):
        return self.Dense_0(x)


class MLP(nn.Module):
    def __init__(self, num_classes, widths, num_pixels=16 * 16 * 3):
        super().__init__()
        self.num_layers = len(widths)
        for i, (inputs, outputs) in enumerate(itertools.pairwise([num_pixels, *widths])):
            self.add_module(f"Dense_{i}", nn.Linear(inputs, outputs))
        self.Head_0 = Head(widths[-1], num_classes)

    def forward(self, x):
        if x.ndim == 4:
            x = x.permute(0, 2, 3, 1)  # Flax flattens pixels first, channels last
        x = x.flatten(1)
        for i in range(self.num_layers):
            x = F.relu(self.get_submodule(f"Dense_{i}")(x))
        return self.Head_0(x)


class ConvNorm(nn.Module):
    def __init__(self, inputs, outputs, kernel_size=3, stride=1, bias=False):
        super().__init__()
        self.Conv_0 = nn.Conv2d(
            inputs, outputs, kernel_size, stride, padding=kernel_size // 2, bias=bias
        )
        self.BatchNorm_0 = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return self.BatchNorm_0(self.Conv_0(x))


class AlexNet(nn.Module):
    def __init__(self, num_classes, channels, hidden, image_size):
        super().__init__()
        a, b, c, d, e = channels
        self.image_size = image_size
        self.Conv_0 = nn.Conv2d(3, a, 11, stride=4, padding=1)
        self.Conv_1 = nn.Conv2d(a, b, 5, padding=2)
        self.Conv_2 = nn.Conv2d(b, c, 3, padding=1)
        self.Conv_3 = nn.Conv2d(c, d, 3, padding=1)
        self.Conv_4 = nn.Conv2d(d, e, 3, padding=1)
        side = (image_size + 2 - 11) // 4 + 1
        for _ in range(3):
            side = (side - 3) // 2 + 1
        self.Dense_0 = nn.Linear(e * side**2, hidden[0])
        self.Dense_1 = nn.Linear(hidden[0], hidden[1])
        self.Head_0 = Head(hidden[1], num_classes)

    def forward(self, x):
        x = F.interpolate(x, self.image_size, mode="nearest-exact")
        x = F.max_pool2d(F.relu(self.Conv_0(x)), 3, 2)
        x = F.max_pool2d(F.relu(self.Conv_1(x)), 3, 2)
        x = F.relu(self.Conv_3(F.relu(self.Conv_2(x))))
        x = F.max_pool2d(F.relu(self.Conv_4(x)), 3, 2)
        x = x.permute(0, 2, 3, 1).flatten(1)  # Flax flattens pixels first, channels last
        return self.Head_0(F.relu(self.Dense_1(F.relu(self.Dense_0(x)))))


class VGG(nn.Module):
    def __init__(self, num_classes, stages):
        super().__init__()
        self.stages = stages
        widths = [3, *itertools.chain(*stages)]
        for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            self.add_module(f"ConvNorm_{i}", ConvNorm(inputs, outputs, bias=True))
        self.Head_0 = Head(widths[-1], num_classes)

    def forward(self, x):
        layer = itertools.count()
        for stage in self.stages:
            for _ in stage:
                x = F.relu(self.get_submodule(f"ConvNorm_{next(layer)}")(x))
            x = F.max_pool2d(x, 2)
        return self.Head_0(x.mean((2, 3)))


class BasicBlock(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.outputs = width
        self.ConvNorm_0 = ConvNorm(inputs, width, 3, stride)
        self.ConvNorm_1 = ConvNorm(width, width)
        same = stride == 1 and inputs == self.outputs
        self.projection = nn.Identity() if same else ConvNorm(inputs, self.outputs, 1, stride)

    def forward(self, x):
        return F.relu(self.ConvNorm_1(F.relu(self.ConvNorm_0(x))) + self.projection(x))


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.outputs = 4 * width
        self.ConvNorm_0 = ConvNorm(inputs, width, 1)
        self.ConvNorm_1 = ConvNorm(width, width, 3, stride)
        self.ConvNorm_2 = ConvNorm(width, self.outputs, 1)
        same = stride == 1 and inputs == self.outputs
        self.projection = nn.Identity() if same else ConvNorm(inputs, self.outputs, 1, stride)

    def forward(self, x):
        branch = F.relu(self.ConvNorm_1(F.relu(self.ConvNorm_0(x))))
        return F.relu(self.ConvNorm_2(branch) + self.projection(x))


class ResNet(nn.Module):
    def __init__(self, num_classes, stage_sizes, width, bottleneck=False):
        super().__init__()
        self.ConvNorm_0 = ConvNorm(3, width)
        blocks, channels = [], width
        for stage, size in enumerate(stage_sizes):
            for i in range(size):
                stride = 2 if stage > 0 and i == 0 else 1
                kind = Bottleneck if bottleneck else BasicBlock
                blocks.append(kind(channels, width * 2**stage, stride))
                channels = blocks[-1].outputs
        self.num_blocks = len(blocks)
        for i, block in enumerate(blocks):
            self.add_module(f"ResidualBlock_{i}", block)
        self.Head_0 = Head(channels, num_classes)

    def forward(self, x):
        x = F.relu(self.ConvNorm_0(x))
        for i in range(self.num_blocks):
            x = self.get_submodule(f"ResidualBlock_{i}")(x)
        return self.Head_0(x.mean((2, 3)))
