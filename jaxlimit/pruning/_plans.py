"""Which layers of a network of the zoo write and read which units or channels."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Writer(NamedTuple):
    """A layer, by the paths of its leaves; its last axis is the space that it writes.

    Attributes:
        kernel: [..., in, out].
        bias: [out], if it has one.
        norm: the path of the BatchNorm after it, below `params` and `batch_stats`, if any.
    """

    kernel: str
    bias: str | None = None
    norm: str | None = None

    @property
    def norm_names(self) -> tuple[str, ...]:
        """Scale, shift, mean and variance of the BatchNorm."""
        if self.norm is None:
            return ()
        at, kept = f"params/{self.norm}", f"batch_stats/{self.norm}"
        return f"{at}/scale", f"{at}/bias", f"{kept}/mean", f"{kept}/var"


class Reader(NamedTuple):
    """A layer that reads a space: the second last axis of its kernel, where it may repeat.

    Attributes:
        layer: the layer, whose bias or mean absorbs what a constant unit contributes.
        padded: whether it pads what it reads with zeros.
    """

    layer: Writer
    padded: bool = False


class Space(NamedTuple):
    """An axis of units or channels.

    Attributes:
        name: the name of its width.
        steps: writers whose outputs are added to it, step by step, with an activation after each;
            more than one step makes a residual stream.
        readers: layers that read it.
    """

    name: str
    steps: tuple[tuple[Writer, ...], ...]
    readers: tuple[Reader, ...]

    @property
    def writers(self) -> tuple[Writer, ...]:
        """All writers, of every step."""
        return tuple(writer for step in self.steps for writer in step)

    @property
    def names(self) -> set[str]:
        """Leaves whose last axis is this space."""
        found = set()
        for writer in self.writers:
            found |= {writer.kernel, *writer.norm_names}
            found |= {writer.bias} if writer.bias is not None else set()
        return found


class Plan(NamedTuple):
    """The spaces of a network, and how to make its module with other widths.

    Attributes:
        spaces: axes of units or channels.
        rebuild: makes the module from the widths, those of `attentions` first.
        activation: applied after every writer.
        attentions: paths of attentions, whose heads may be removed.
    """

    spaces: tuple[Space, ...]
    rebuild: Callable[[dict[str, int]], Any]
    activation: Callable = jax.nn.relu
    attentions: tuple[str, ...] = ()


def plan_of(module: Any) -> Plan:
    """Return the plan of a network of the zoo.

    Raises:
        TypeError: if there is no plan for it.
    """
    from jaxlimit import models

    for kind, plan in {
        models.MLP: _mlp,
        models.VGG: _vgg,
        models.AlexNet: _alexnet,
        models.ResNet: _resnet,
        models.CNN: _cnn,
        models.ViT: _vit,
    }.items():
        if isinstance(module, kind):
            return plan(module)
    raise TypeError(
        f"module must be an MLP, VGG, AlexNet, ResNet, CNN or ViT of jaxlimit.models, got "
        f"{type(module).__name__}; compress_dense takes any chain of dense layers"
    )


_HEAD = Writer("params/Head_0/Dense_0/kernel", "params/Head_0/Dense_0/bias")


def _layer(name: str) -> Writer:
    return Writer(f"params/{name}/kernel", f"params/{name}/bias")


def _conv_norm(name: str, use_bias: bool) -> Writer:
    bias = f"params/{name}/Conv_0/bias" if use_bias else None
    return Writer(f"params/{name}/Conv_0/kernel", bias, f"{name}/BatchNorm_0")


def _mlp(module: Any) -> Plan:
    layers = [_layer(f"Dense_{i}") for i in range(len(module.widths))]
    readers = [*map(Reader, layers[1:]), Reader(_HEAD)]
    spaces = tuple(
        Space(f"Dense_{i}", ((layer,),), (reader,))
        for i, (layer, reader) in enumerate(zip(layers, readers, strict=True))
    )
    return Plan(spaces, lambda widths: module.clone(widths=tuple(widths.values())))


def _vgg(module: Any) -> Plan:
    num = sum(map(len, module.stages))
    layers = [_conv_norm(f"ConvNorm_{i}", use_bias=True) for i in range(num)]
    readers = [*(Reader(layer, padded=True) for layer in layers[1:]), Reader(_HEAD)]
    spaces = tuple(
        Space(f"ConvNorm_{i}", ((layer,),), (reader,))
        for i, (layer, reader) in enumerate(zip(layers, readers, strict=True))
    )

    def rebuild(widths: dict[str, int]) -> Any:
        left = iter(widths.values())
        return module.clone(stages=tuple(tuple(next(left) for _ in s) for s in module.stages))

    return Plan(spaces, rebuild)


def _alexnet(module: Any) -> Plan:
    convs = [_layer(f"Conv_{i}") for i in range(len(module.channels))]
    dense = [_layer(f"Dense_{i}") for i in range(len(module.hidden))]
    readers = [Reader(layer, padded=True) for layer in convs[1:]]
    readers += [*map(Reader, dense), Reader(_HEAD)]
    names = [layer.kernel.split("/")[1] for layer in [*convs, *dense]]
    spaces = tuple(
        Space(name, ((layer,),), (reader,))
        for name, layer, reader in zip(names, [*convs, *dense], readers, strict=True)
    )

    def rebuild(widths: dict[str, int]) -> Any:
        left = tuple(widths.values())
        return module.clone(channels=left[: len(convs)], hidden=left[len(convs) :])

    return Plan(spaces, rebuild)


def _cnn(module: Any) -> Plan:
    layers = [_layer(f"Conv_{i}") for i in range(len(module.channels))]
    readers = [*(Reader(layer, padded=True) for layer in layers[1:]), Reader(_HEAD)]
    spaces = tuple(
        Space(f"Conv_{i}", ((layer,),), (reader,))
        for i, (layer, reader) in enumerate(zip(layers, readers, strict=True))
    )
    return Plan(spaces, lambda widths: module.clone(channels=tuple(widths.values())))


def _vit(module: Any) -> Plan:
    blocks = [f"Block_{i}" for i in range(module.num_blocks)]
    spaces = tuple(
        Space(f"{at}/Dense_0", ((_layer(f"{at}/Dense_0"),),), (Reader(_layer(f"{at}/Dense_1")),))
        for at in blocks
    )
    heads, _ = module.sizes()
    head_width = module.head_width or module.width // heads[0]

    def rebuild(widths: dict[str, int]) -> Any:
        left = tuple(widths.values())
        return module.clone(
            num_heads=left[: len(blocks)], head_width=head_width, hidden=left[len(blocks) :]
        )

    attentions = tuple(f"params/{at}/attention" for at in blocks)
    return Plan(spaces, rebuild, jax.nn.gelu, attentions)


def _resnet(module: Any) -> Plan:
    stem = _conv_norm("ConvNorm_0", use_bias=False)
    num_convs = 3 if module.bottleneck else 2
    inner: list[Space] = []
    steps: list[list[tuple[Writer, ...]]] = [[(stem,)]]
    readers: list[list[Reader]] = [[]]
    places = [(stage, i == 0) for stage, num in enumerate(module.stage_sizes) for i in range(num)]
    for block, (stage, first) in enumerate(places):
        at = f"ResidualBlock_{block}"
        convs = [_conv_norm(f"{at}/ConvNorm_{i}", use_bias=False) for i in range(num_convs)]
        # The first and the last of a bottleneck are 1x1: only 3x3 convolutions pad.
        padded = [not module.bottleneck, True, False][:num_convs]
        readers[-1].append(Reader(convs[0], padded[0]))
        if first and (stage or module.bottleneck):
            projection = _conv_norm(f"{at}/projection", use_bias=False)
            readers[-1].append(Reader(projection))
            steps.append([(projection, convs[-1])])
            readers.append([])
        else:
            steps[-1].append((convs[-1],))
        inner += [
            Space(f"{at}/ConvNorm_{i}", ((convs[i],),), (Reader(convs[i + 1], padded[i + 1]),))
            for i in range(num_convs - 1)
        ]
    readers[-1].append(Reader(_HEAD))
    streams = [
        Space(f"stream_{i}", tuple(step), tuple(reader))
        for i, (step, reader) in enumerate(zip(steps, readers, strict=True))
    ]

    def rebuild(widths: dict[str, int]) -> Any:
        left = list(widths.values())
        outer, left = left[: len(streams)], left[len(streams) :]
        grouped = tuple(
            tuple(left[i : i + num_convs - 1]) for i in range(0, len(left), num_convs - 1)
        )
        return module.clone(streams=tuple(outer), inner=grouped)

    return Plan((*streams, *inner), rebuild)
