import hashlib
import json
import os
import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from lrrt_stage import INITIALIZERS, LRRTError, digest, initialize, seeded
from lrrt_stage.errors import first_line
from lrrt_stage.state import weights
from tests.strategies import JSON, read_or_named


def model():
    with seeded(5):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4)
        )


def initialized(scheme, seed=0):
    net = model()
    initialize(net, scheme, seed)
    return weights.state_of(net)


def test_the_digest_is_over_names_dtypes_shapes_and_bytes_in_name_order():
    state = {"b": torch.tensor([[1.5, 2.0]]), "a": torch.tensor(3, dtype=torch.int64)}
    content = (
        b"a\0int64\0\0"
        + np.array(3, dtype="<i8").tobytes()
        + b"b\0float32\0"
        + b"1,2\0"
        + np.array([1.5, 2.0], dtype="<f4").tobytes()
    )
    assert digest(state) == hashlib.sha256(content).hexdigest()
    assert digest(dict(reversed(state.items()))) == digest(state)


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([1.0, 2.0, 3.0, 4.1])},
        {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]])},
        {"b": torch.tensor([1.0, 2.0, 3.0, 4.0])},
        {"a": torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)},
    ],
)
def test_the_digest_tells_values_shapes_names_and_dtypes_apart(other):
    assert digest({"a": torch.tensor([1.0, 2.0, 3.0, 4.0])}) != digest(other)


def test_the_digest_does_not_depend_on_layout():
    image = torch.randn(2, 3, 4, 4)
    assert digest({"a": image}) == digest({"a": image.to(memory_format=torch.channels_last)})


@pytest.mark.parametrize("scheme", [*INITIALIZERS, "own"])
def test_the_same_seed_gives_the_same_weights_whatever_the_global_state(scheme):
    torch.manual_seed(1)
    first = digest(initialized(scheme))
    torch.manual_seed(2)
    torch.rand(7)
    assert digest(initialized(scheme)) == first
    if scheme != "own":
        assert digest(initialized(scheme, seed=1)) != first


@pytest.mark.parametrize("scheme", INITIALIZERS)
def test_the_global_random_state_is_neither_read_nor_changed(scheme):
    net = model()
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    initialize(net, scheme, 0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_the_distributions_are_those_of_the_papers():
    # He et al. 2015: bound sqrt(6 / fan_in), std sqrt(2 / fan_in); Glorot & Bengio 2010: bound
    # sqrt(6 / (fan_in + fan_out)).
    def weight(scheme):
        layer = nn.Linear(600, 300)
        initialize(layer, scheme, 0)
        return layer.weight, layer.bias

    uniform, bias = weight("kaiming_uniform")
    assert 0.999 * 0.1 < uniform.abs().max() <= 0.1
    assert not bias.any()
    normal, _ = weight("kaiming_normal")
    assert normal.std().item() == pytest.approx((2 / 600) ** 0.5, rel=0.01)
    xavier, _ = weight("xavier_uniform")
    assert 0.999 * (6 / 900) ** 0.5 < xavier.abs().max() <= (6 / 900) ** 0.5


def test_norm_layers_keep_what_the_constructor_gave_them():
    state = initialized("kaiming_normal")
    assert (state["1.weight"] == 1).all()
    assert (state["1.running_var"] == 1).all()


def test_a_file_gives_back_every_parameter_and_buffer(tmp_path):
    net = model()
    net(torch.randn(4, 3, 3, 3))  # moves the batch norm's buffers
    state = weights.state_of(net)
    path = weights.save(state, tmp_path / "w.safetensors")
    other = model()
    weights.load_into(other, weights.load(path))
    assert digest(other.state_dict()) == digest(state)
    assert "1.running_mean" in state


def test_tied_weights_are_saved(tmp_path):
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    state = weights.state_of(net)
    weights.load_into(net, weights.load(weights.save(state, tmp_path / "w.safetensors")))
    assert net[1].weight is net[0].weight


def test_a_pickle_is_refused(tmp_path):
    torch.save(model().state_dict(), tmp_path / "w.pt")
    with pytest.raises(LRRTError, match="not a readable safetensors file"):
        weights.load(tmp_path / "w.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(LRRTError, match="there is no weights file"):
        weights.load(tmp_path / "none")


def test_weights_that_do_not_fit_list_the_first_differences():
    state = {"weight": torch.zeros(2, 3), "bias": torch.zeros(4), "scale": torch.zeros(1)}
    with pytest.raises(LRRTError, match="do not fit .* same names at every construction") as error:
        weights.load_into(nn.Linear(3, 4), state)
    assert "scale is float32[1] in the weights, absent in the model" in str(error.value)
    assert "weight is float32[2, 3] in the weights, float32[4, 3] in the model" in str(error.value)
    with pytest.raises(LRRTError, match="bias is absent in the weights"):
        weights.load_into(nn.Linear(3, 4), {"weight": torch.zeros(4, 3)})


def test_an_unknown_scheme_names_the_nearest():
    with pytest.raises(LRRTError, match="did you mean 'kaiming_normal'"):
        initialize(model(), "kaming_normal", 0)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight

    def right_inverse(self, weight):
        return weight / 2


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight.triu() + weight.triu(1).T

    def right_inverse(self, weight):
        return weight.triu()


class WithoutInverse(nn.Module):
    def forward(self, weight):
        return weight.exp()


def with_parametrization(kind, name="weight"):
    return lambda layer: parametrize.register_parametrization(layer, name, kind())


@pytest.mark.parametrize("scheme", INITIALIZERS)
@pytest.mark.parametrize(
    "wrap",
    [parametrizations.weight_norm, with_parametrization(Doubled),
     with_parametrization(Doubled, "bias")],
)  # fmt: skip
def test_a_weight_is_drawn_through_its_parametrization(wrap, scheme):
    plain, layer = nn.Linear(24, 16), nn.Linear(24, 16)
    wrap(layer)
    initialize(plain, scheme, 3)
    initialize(layer, scheme, 3)
    assert torch.allclose(layer.weight, plain.weight, atol=1e-6)
    assert not layer.bias.any()


@pytest.mark.parametrize("training", [True, False])
def test_spectral_norm_scales_what_is_drawn_to_a_norm_of_one(training):
    plain, layer = nn.Conv2d(4, 8, 3), parametrizations.spectral_norm(nn.Conv2d(4, 8, 3))
    layer.train(training)
    initialize(plain, "kaiming_uniform", 3)
    initialize(layer, "kaiming_uniform", 3)
    with torch.no_grad():
        norm = torch.linalg.matrix_norm(plain.weight.flatten(1), 2)
        assert torch.allclose(layer.weight, plain.weight / norm, rtol=0.02, atol=0.002)
    assert all(module.training == training for module in layer.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex64])
def test_weights_of_any_dtype_with_random_numbers_are_drawn(dtype):
    layer = nn.Linear(8, 8).to(dtype)
    before = layer.weight.detach().clone()
    initialize(layer, "kaiming_uniform", 0)
    assert not torch.equal(layer.weight, before)


@pytest.mark.parametrize("scheme", INITIALIZERS)
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: parametrizations.orthogonal(nn.Linear(8, 8)), "changes more than the scale"),
        (lambda: with_parametrization(Symmetric)(nn.Linear(8, 8)), "changes more than the scale"),
        (lambda: with_parametrization(WithoutInverse)(nn.Linear(8, 8)), "right_inverse"),
        (lambda: nn.utils.weight_norm(nn.Linear(8, 8)), "computed by a hook"),
        (lambda: nn.utils.spectral_norm(nn.Linear(8, 8)), "computed by a hook"),
        (lambda: prune.random_unstructured(nn.Linear(8, 8), "weight", 0.5), "computed by a hook"),
        (lambda: nn.Linear(8, 8).to(torch.float8_e4m3fn), "Float8"),
        (lambda: nn.LazyLinear(8), "lazy module"),
        (lambda: nn.Sequential(nn.Embedding(3, 4), nn.LayerNorm(4)), "Sequential has none"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm. is deprecated")
def test_what_cannot_be_drawn_is_refused(make, words, scheme):
    with pytest.raises(LRRTError, match=words) as error:
        initialize(make(), scheme, 0)
    assert "\n" not in str(error.value)
    initialize(make(), "own", 0)


def with_buffer(values, persistent=True):
    layer = nn.Linear(2, 2)
    layer.register_buffer("values", values, persistent)
    return layer


class Extra(nn.Linear):
    extra: object = torch.ones(2)

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


class PlainExtra(Extra):
    extra = {"calls": 1}  # noqa: RUF012


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2, torch.bool,
     torch.int8, torch.uint16, torch.int64],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_tensors_of_every_dtype_and_shape_are_identified_saved_and_loaded(dtype, shape, tmp_path):
    model = with_buffer(torch.ones(shape).to(dtype))
    state = weights.state_of(model)
    loaded = weights.load(weights.save(state, tmp_path / "w.safetensors"))
    assert digest(loaded) == digest(state)
    other = with_buffer(torch.zeros(shape).to(dtype))
    assert shape == (0, 3) or digest(other.state_dict()) != digest(state)
    weights.load_into(other, loaded)
    assert digest(other.state_dict()) == digest(state)


@pytest.mark.parametrize(
    "model",
    [
        Extra(2, 2),
        with_buffer(torch.ones(2, dtype=torch.complex64).conj()),
        with_buffer(torch.ones(3), persistent=False),
    ],
)
def test_unusual_states_are_identified_saved_and_loaded(model, tmp_path):
    state = weights.state_of(model)
    loaded = weights.load(weights.save(state, tmp_path / "w.safetensors"))
    weights.load_into(model, loaded)
    assert digest(loaded) == digest(state) == digest(model.state_dict())


@pytest.mark.parametrize(
    "model",
    [
        PlainExtra(2, 2),
        with_buffer(torch.eye(2).to_sparse()),
        with_buffer(torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)),
        with_buffer(torch.ones(2, device="meta")),
    ],
)
def test_a_state_that_is_no_dense_tensor_is_refused(model, tmp_path):
    state = dict(model.state_dict())
    for use in (
        lambda: weights.state_of(model),
        lambda: digest(state),
        lambda: weights.save(state, tmp_path / "w.safetensors"),
        lambda: weights.load_into(model, {}),
    ):
        with pytest.raises(LRRTError, match="in the model's state is no dense tensor") as error:
            use()
        assert "\n" not in str(error.value)


def test_what_safetensors_cannot_hold_is_refused(tmp_path):
    with pytest.raises(LRRTError, match="torch.complex128"):
        weights.save({"a": torch.ones(2, dtype=torch.complex128)}, tmp_path / "w.safetensors")


@pytest.mark.parametrize("values", [torch.arange(4.0), torch.zeros(4)])
def test_a_buffer_whose_elements_share_memory_is_loaded(values):
    model = with_buffer(torch.ones(1).expand(4))
    held = model.values
    weights.load_into(model, {**weights.state_of(model), "values": values})
    assert model.values is held
    assert torch.equal(model.values, values)


@pytest.mark.parametrize(
    "use",
    [
        lambda: weights.load_into("x", {}),
        lambda: weights.load_into(None, {}),
        lambda: weights.state_of(nn.Linear),
        lambda: digest(nn.Linear(2, 2)),
    ],
)
def test_what_is_no_model_and_no_state_is_named(use):
    with pytest.raises(LRRTError, match="the (model|state) is .*: pass ") as error:
        use()
    assert "\n" not in str(error.value)


HEADERS = st.dictionaries(st.text(max_size=3), JSON, max_size=2).map(
    lambda header: json.dumps(header).encode()
)
FILES = HEADERS.map(lambda header: len(header).to_bytes(8, "little") + header)


@given(FILES | st.binary(max_size=100) | st.tuples(FILES, st.binary(max_size=9)).map(b"".join))
def test_any_file_is_weights_or_named_in_one_line(content):
    found = read_or_named(weights.load, "w.safetensors", content)
    assert isinstance(found, (dict, LRRTError))


@pytest.mark.parametrize("name", ["", "x" * 300, "pipe"])
def test_what_is_no_file_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LRRTError, match="there is no weights file"):
        weights.load(tmp_path / name)


def test_no_line_advises_to_load_a_pickle(tmp_path):
    torch.save(nn.Linear(1, 1), tmp_path / "w.pt")
    with pytest.raises(LRRTError) as refused:
        weights.load(tmp_path / "w.pt")
    with pytest.raises(pickle.UnpicklingError) as unsafe:
        torch.load(tmp_path / "w.pt", weights_only=True)
    assert "a pickle could run code" in str(refused.value)
    assert first_line(unsafe.value) == (
        "Weights only load failed: the file holds more than weights, and may run code"
    )


@pytest.mark.skipif(not os.path.isfile("/proc/self/mem"), reason="no such file here")
def test_a_file_that_cannot_be_read_is_one_line():
    with pytest.raises(LRRTError, match="/proc/self/mem is not a readable safetensors file"):
        weights.load("/proc/self/mem")
