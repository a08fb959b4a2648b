"""Train a network with l1, predict how sparse it can be pruned, prune it, and compare.

python experiments/pruning_limit.py                       # FC5 on digits, about a minute
python experiments/pruning_limit.py --dataset cifar10 --epochs 200 --l1 2e-4 --data-dir DIR
"""

from jaxlimit.cli import entry

if __name__ == "__main__":
    entry("run")
