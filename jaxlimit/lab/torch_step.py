"""PyTorch's side of `benchmarks/convolutional_networks.py`: one call for each line of input.

It needs torch and NumPy, and no JAX. Started by the benchmark, with the python of the peers.
"""

import argparse
import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

LAB = Path(__file__).parent


def networks() -> ModuleType:
    """Load the networks in PyTorch from their files, since the package itself wants JAX."""
    for name in ("torch_layout", "torch_networks"):
        full = f"jaxlimit.lab.{name}"
        spec = importlib.util.spec_from_file_location(full, LAB / f"{name}.py")
        assert spec is not None and spec.loader is not None  # noqa: PT018  both are files here
        module = importlib.util.module_from_spec(spec)
        for parent in ("jaxlimit", "jaxlimit.lab"):
            sys.modules.setdefault(parent, ModuleType(parent))
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules["jaxlimit.lab.torch_networks"]


def make(name: str) -> Any:
    """Make a network of ten classes."""
    nets = networks()
    if name == "vgg16":
        stages = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)
        return nets.VGG(10, stages)
    if name == "resnet50":
        return nets.ResNet(10, (3, 4, 6, 3), 64, bottleneck=True)
    return nets.ResNet(10, (2, 2, 2, 2), 16 if name.endswith("-small") else 64)


def main() -> None:
    """Make the call ready, then answer each line with its wall and CPU seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("kind", "network", "pixels", "dtype", "num_images", "threads"):
        parser.add_argument(name)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(int(args.threads))
    model = make(args.network).to(memory_format=torch.channels_last)
    images = torch.randn(int(args.num_images), 3, int(args.pixels), int(args.pixels))
    images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(len(images)) % 10
    params = list(model.parameters())
    narrow = torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.dtype == "bfloat16")

    def loss() -> Any:
        with narrow:
            return torch.nn.functional.cross_entropy(model(images), labels)

    if args.kind == "train":
        optimizer = torch.optim.SGD(params, lr=0.01)

        def call() -> None:
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
    else:
        model.eval()
        params = [p for n, p in model.named_parameters() if "BatchNorm" not in n]
        gradient = torch.autograd.grad(loss(), params, create_graph=True)
        vector = [torch.randn_like(p) for p in params]

        def call() -> None:
            torch.autograd.grad(gradient, params, vector, retain_graph=True)

    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        print(time.perf_counter() - wall, time.process_time() - cpu, flush=True)


if __name__ == "__main__":
    main()
