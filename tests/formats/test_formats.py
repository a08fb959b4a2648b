"""Checkpoints written by each library's own writer, pruned, and read by its own reader."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from jaxlimit import formats, pruning
from jaxlimit._core.digests import is_key


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.tanh(nn.Dense(4)(x)))


def linen():
    return Net().init(jax.random.key(0), jnp.zeros((1, 5)))["params"]


def nnx_state():
    class Two(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(5, 4, rngs=rngs)
            self.heads = nnx.List([nnx.Linear(4, 3, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)])

    return nnx.state(Two(nnx.Rngs(0)), nnx.Param)


def equinox_arrays():
    model = eqx.nn.MLP(5, 3, 4, 2, key=jax.random.key(0))
    return eqx.partition(model, eqx.is_inexact_array)[0]


def bare():
    rng = np.random.default_rng(0)
    return {
        "wide": rng.standard_normal((3, 4)),  # float64, which JAX would narrow
        "narrow": [jnp.asarray(rng.standard_normal(5), jnp.bfloat16), np.ones(2, np.float16)],
        "number": np.asarray(-2.5, np.float32),
    }  # fmt: skip


def narrowed(library):
    """In bfloat16, as people train."""
    return lambda: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), library())


LIBRARIES = {"linen": linen, "nnx": nnx_state, "equinox": equinox_arrays, "bare": bare}
LIBRARIES |= {
    f"{name}, bfloat16": narrowed(LIBRARIES[name]) for name in ("linen", "nnx", "equinox")
}


def holds_narrow(library):
    return library == "bare" or library.endswith("bfloat16")


def named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    keystr = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")  # noqa: E731
    return {keystr(path): np.asarray(leaf) for path, leaf in leaves}


def write(kind, path, params):
    """Write by each format's own writer."""
    if kind == "orbax":
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, params)
    elif kind == "npz":
        np.savez(path, **named(params))
    elif kind == "safetensors":
        save_file(named(params), path, metadata={"format": "flax"})
    elif kind == "msgpack":
        path.write_bytes(serialization.to_bytes(unflatten_dict(named(params), sep="/")))
    else:
        eqx.tree_serialise_leaves(path, params)


def read(kind, path, params):
    """Read by each format's own reader, in the structure of `params`."""
    if kind == "orbax":
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(path, params)
    if kind == "eqx":
        return eqx.tree_deserialise_leaves(path, params)
    if kind == "msgpack":
        flat = flatten_dict(serialization.msgpack_restore(path.read_bytes()), sep="/")
    else:
        flat = np.load(path) if kind == "npz" else load_bytes(path)
    leaves = [flat[name] for name in named(params)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def load_bytes(path):
    try:
        return load_file(path)
    except KeyError:  # its NumPy reader lacks bfloat16, its Flax one float64
        from safetensors import deserialize

        types = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F64": float}
        return {
            name: np.frombuffer(entry["data"], types[entry["dtype"]]).reshape(entry["shape"])
            for name, entry in deserialize(path.read_bytes())
        }


def same_bits(got, wanted):
    got, wanted = jax.tree.leaves(got), jax.tree.leaves(wanted)
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert one.shape == other.shape
        assert one.dtype == other.dtype or one.dtype.kind == "V"
        assert one.tobytes() == other.tobytes()


def masked(leaf, keep):
    kept = np.array(leaf)
    kept[~keep] = 0
    return kept


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("kind", ["orbax", "safetensors", "msgpack", "npz", "eqx"])
def test_round_trip(tmp_path, kind, library):
    params = LIBRARIES[library]()
    path, pruned = tmp_path / f"dense.{kind}", tmp_path / f"pruned.{kind}"
    write(kind, path, params)
    checkpoint = formats.load(path, like=params)
    same_bits(checkpoint.params, params)
    assert checkpoint.kind == kind
    assert jax.tree.structure(checkpoint.params) == jax.tree.structure(params)

    mask = jax.tree.map(lambda leaf: np.abs(np.asarray(leaf, float)) > 0.4, params)
    wanted = jax.tree.map(
        lambda leaf, keep: np.asarray(leaf) * keep.astype(leaf.dtype), params, mask
    )
    wanted = jax.tree.map(lambda leaf: leaf + np.zeros((), leaf.dtype), wanted)  # -0 is 0
    formats.save_pruned(pruned, mask, like=checkpoint)
    same_bits(formats.load(pruned, like=params).params, wanted)
    if kind != "npz" or not holds_narrow(library):  # NumPy's own reader has no bfloat16
        with jax.enable_x64(library == "bare"):
            same_bits(read(kind, pruned, params), wanted)

    formats.save(pruned, params, like=checkpoint)
    same_bits(formats.load(pruned, like=params).params, params)
    formats.save_mask(tmp_path / f"mask.{kind}", mask, like=checkpoint)
    same_bits(formats.load(tmp_path / f"mask.{kind}", like=mask).params, mask)


@pytest.mark.parametrize("kind", ["orbax", "eqx"])
def test_the_random_keys_of_a_whole_model_come_back(tmp_path, kind):
    class Dropped(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(5, 4, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)

    state = nnx.state(Dropped(nnx.Rngs(3)))
    plain = jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, state)
    write(kind, tmp_path / f"dense.{kind}", plain if kind == "eqx" else state)
    checkpoint = formats.load(tmp_path / f"dense.{kind}", like=nnx.state(Dropped(nnx.Rngs(0))))
    assert sum(map(is_key, jax.tree.leaves(checkpoint.params))) == 1
    wanted = jax.tree.leaves(plain)
    same_bits(jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x,
                           jax.tree.leaves(checkpoint.params)), wanted)  # fmt: skip
    formats.save(tmp_path / f"again.{kind}", checkpoint.params, like=checkpoint)
    same_bits(jax.tree.leaves(formats.load(tmp_path / f"again.{kind}", like=plain).params), wanted)


@pytest.mark.parametrize("kind", ["orbax", "safetensors", "msgpack", "npz"])
def test_what_are_no_parameters_is_kept(tmp_path, kind):
    params = linen()
    whole = {"opt_state": {"mu": params}, "params": params, "step": np.int32(7)}
    path, pruned = tmp_path / f"dense.{kind}", tmp_path / f"pruned.{kind}"
    write(kind, path, whole)
    for like in (params, None):  # of the two places that fit, `params` is meant
        checkpoint = formats.load(path, like=like)
        same_bits(checkpoint.params, params)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, bool), params)
    formats.save_pruned(pruned, zeros, like=checkpoint)
    same_bits(formats.load(pruned, at="opt_state/mu").params, params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(formats.load(pruned).params))
    same_bits(formats.load(pruned, at="step").params, np.int32(7))


def test_a_managers_step_and_items_are_kept(tmp_path):
    params = linen()
    with ocp.CheckpointManager(tmp_path / "dense") as manager:
        for step in (3, 12):
            scaled = jax.tree.map(lambda leaf, step=step: leaf * step, params)
            state, note = ocp.args.StandardSave({"params": scaled}), ocp.args.JsonSave({"a": 1})
            manager.save(step, args=ocp.args.Composite(state=state, note=note))
    checkpoint = formats.load(tmp_path / "dense", like=params)
    same_bits(checkpoint.params, jax.tree.map(lambda leaf: leaf * 12, params))
    older = formats.load(tmp_path / "dense", like=params, step=3)
    same_bits(older.params, jax.tree.map(lambda leaf: leaf * 3, params))
    mask = pruning.magnitude_mask(params, 0.5)
    formats.save_pruned(tmp_path / "pruned", mask, like=checkpoint)
    with ocp.CheckpointManager(tmp_path / "pruned") as manager:
        state, note = ocp.args.StandardRestore({"params": params}), ocp.args.JsonRestore()
        items = ocp.args.Composite(state=state, note=note)
        restored = manager.restore(manager.latest_step(), args=items)
    assert restored["note"] == {"a": 1}
    same_bits(restored["state"]["params"], pruning.apply_mask(checkpoint.params, mask))
    with pytest.raises(formats.CheckpointError, match=r"step must be one of \[12, 3\]"):
        formats.load(tmp_path / "dense", step=4)


def test_names_with_dots(tmp_path):
    save_file({"layer.0.weight": np.ones((2, 3), np.float32)}, tmp_path / "w.safetensors")
    assert formats.load(tmp_path / "w.safetensors").params["layer"]["0"]["weight"].shape == (2, 3)
    like = {"layer": [{"weight": jax.ShapeDtypeStruct((2, 3), jnp.float32)}]}
    assert formats.load(tmp_path / "w.safetensors", like=like).params["layer"][0]["weight"].all()


def test_whole_equinox_model(tmp_path):
    model = eqx.nn.MLP(5, 3, 4, 2, key=jax.random.key(1))
    eqx.tree_serialise_leaves(tmp_path / "model.eqx", model)
    other = eqx.nn.MLP(5, 3, 4, 2, key=jax.random.key(2))
    loaded = formats.load(tmp_path / "model.eqx", like=other).params
    x = jnp.arange(5.0)
    np.testing.assert_array_equal(loaded(x), model(x))


@pytest.mark.parametrize("kind", ["safetensors", "msgpack", "npz", "eqx"])
def test_damage_has_a_name(tmp_path, kind):
    params, path = linen(), tmp_path / f"dense.{kind}"
    write(kind, path, params)
    data = path.read_bytes()
    for cut in (0, 1, 7, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(formats.CheckpointError, match=f"dense.{kind}"):
            formats.load(path, like=params)
    path.write_bytes(b"\x00" * len(data))
    with pytest.raises(formats.CheckpointError):
        formats.load(path, like=params)


@pytest.mark.parametrize("shape", [(10**11,), (2**40, 2**40), (-3,)])
@pytest.mark.parametrize("kind", ["npz", "eqx"])
def test_a_size_is_checked_before_it_is_believed(tmp_path, kind, shape):
    """A MemoryError before, or as much memory as the header says."""
    header = io.BytesIO()
    about = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, about)
    data, path = header.getvalue() + bytes(12), tmp_path / f"huge.{kind}"
    if kind == "npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w.npy", data)
    else:
        path.write_bytes(data)
    with pytest.raises(formats.CheckpointError, match=r"huge.* cannot be read"):
        formats.load(path, like={"w": np.zeros(3)})


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(formats.CheckpointError, match="must be a folder or a regular file"):
        formats.load(tmp_path / "pipe.npz")


# Orbax closes its event loop at the first array that cannot be read, while the others are still
# being read; each of them then finds the loop closed, in a thread where nothing can catch it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_orbax(tmp_path):
    params = linen()
    write("orbax", tmp_path / "dense", params)
    for file in (tmp_path / "dense").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(b"\x00" * 100)
    with pytest.raises(formats.CheckpointError, match="damaged"):
        formats.load(tmp_path / "dense", like=params)
    (tmp_path / "other").mkdir()
    with pytest.raises(formats.CheckpointError, match="must be an orbax checkpoint"):
        formats.load(tmp_path / "other")


def test_an_orbax_array_larger_than_the_machine_is_refused(tmp_path):
    """The reader would end the process: it asks for memory that there is not."""
    ocp.PyTreeCheckpointer(use_ocdbt=False).save(tmp_path / "huge", {"w": np.zeros(3, np.float32)})
    about = tmp_path / "huge" / "w" / ".zarray"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"shape": [10**13]}))
    with pytest.raises(formats.CheckpointError, match="holds 40,000,000,000,000 bytes"):
        formats.load(tmp_path / "huge")


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/jaxlimit-was-here"),))


def test_nothing_is_unpickled(tmp_path):
    np.savez(tmp_path / "evil.npz", x=np.array([Evil()], object))
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    buffer = io.BytesIO()
    np.save(buffer, np.array([Evil()], object))
    (tmp_path / "evil.eqx").write_bytes(buffer.getvalue())
    for name in ("evil.npz", "evil.pkl", "evil.eqx"):
        with pytest.raises(formats.CheckpointError):
            formats.load(tmp_path / name, like={"x": np.zeros(1)})
    assert not Path("/tmp/jaxlimit-was-here").exists()


def test_foreign_structure_is_refused(tmp_path):
    params = linen()
    write("npz", tmp_path / "w.npz", params)
    with pytest.raises(formats.CheckpointError, match="lacks Dense_2/kernel"):
        formats.load(tmp_path / "w.npz", like={"Dense_2": {"kernel": np.zeros(2)}})
    wrong = jax.tree.map(lambda leaf: np.zeros((*leaf.shape, 1)), params)
    with pytest.raises(formats.CheckpointError, match="must have shape"):
        formats.load(tmp_path / "w.npz", like=wrong)
    with pytest.raises(FileNotFoundError, match="nothing at"):
        formats.load(tmp_path / "none.npz")
    checkpoint = formats.load(tmp_path / "w.npz", like=params)
    with pytest.raises(formats.CheckpointError, match="must hold Booleans"):
        formats.save_mask(tmp_path / "m.npz", params, like=checkpoint)
    finer = jax.tree.map(lambda leaf: np.asarray(leaf, float) + 1e-12, params)
    with pytest.raises(formats.CheckpointError, match="holds exactly"):
        formats.save(tmp_path / "w2.npz", finer, like=checkpoint)
    assert not (tmp_path / "w2.npz").exists()


def test_a_failed_write_leaves_the_old_one(tmp_path, monkeypatch):
    params = linen()
    write("npz", tmp_path / "w.npz", params)
    before = (tmp_path / "w.npz").read_bytes()
    checkpoint = formats.load(tmp_path / "w.npz", like=params)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxlimit._core.files.os.fsync", full)
    with pytest.raises(OSError, match=r"w\.npz, what was there before is still whole: No space"):
        formats.save(tmp_path / "w.npz", params, like=checkpoint)
    monkeypatch.undo()
    assert (tmp_path / "w.npz").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w.npz"]


def test_stored_size():
    rng = np.random.default_rng(0)
    leaf = rng.standard_normal((100, 100)).astype(np.float32) * (rng.random((100, 100)) < 0.01)
    kept = int((leaf != 0).sum())
    size = formats.stored_size({"a": leaf, "b": np.zeros(3, ml_dtypes.bfloat16)})
    assert size == (10003, kept, 40006, 4 * kept + 1250 + 1, 8 * kept)
    assert f"{kept} of 10,003" in str(size)
