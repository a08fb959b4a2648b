"""The names and axis orders that PyTorch gives to what Flax holds, without PyTorch itself."""

import itertools

import numpy as np

LEAF_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def renamed(*trees) -> dict[str, np.ndarray]:
    """Rename and transpose Flax leaves [h, w, in, out], [in, out] to those of a state dict."""
    import jax  # here, so that PyTorch's side of a benchmark runs where there is no JAX

    state = {}
    for path, leaf in itertools.chain(*map(jax.tree_util.tree_leaves_with_path, trees)):
        *modules, name = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[leaf.ndim]
        array = np.array(np.asarray(leaf).transpose(axes), order="C")
        state[".".join([*modules, LEAF_NAMES.get(name, name)])] = array
    return state


def restored(like, named):
    """Lay arrays by their names in PyTorch out as the Flax leaves of a tree: undoes `renamed`."""
    import jax

    def leaf_of(path, leaf):
        *modules, name = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        array = np.asarray(named[".".join([*modules, LEAF_NAMES.get(name, name)])])
        return array.transpose({4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[np.ndim(leaf)])

    return jax.tree_util.tree_map_with_path(leaf_of, like)
