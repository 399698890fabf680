from __future__ import annotations

import warnings

import pytest
import torch
import torchvision
from torch import nn

from pipeline.models.networks import build_model, check_output

IMAGE = (3, 32, 32)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def residual_parameters(depth: int, projection: bool = False) -> int:
    """Counted from He et al. 2015, §4.2, for ten classes: 3 × 3 convolutions without bias, each
    with the scale and shift of a batch norm; n blocks of two for each of 16, 32 and 64 channels.
    """
    n = (depth - 2) // 6
    count = 9 * 3 * 16 + 2 * 16 + 64 * 10 + 10
    before = 16
    for width in (16, 32, 64):
        count += 9 * before * width + (2 * n - 1) * 9 * width * width + 2 * n * 2 * width
        if projection and before != width:
            count += before * width + 2 * width
        before = width
    return count


class TestCifarResnet:
    @pytest.mark.parametrize(
        ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
    )
    def test_parameters_are_those_of_table_6(self, depth, millions):
        count = parameters(build_model(f"resnet{depth}", {}, IMAGE, 10))

        assert round(count / 1e6, 1 if depth == 110 else 2) == millions
        assert count == residual_parameters(depth)

    @pytest.mark.parametrize("depth", [20, 56])
    def test_projections_add_two_convolutions_with_their_norms(self, depth):
        model = build_model(f"resnet{depth}", {"shortcut": "projection"}, IMAGE, 10)

        assert parameters(model) == residual_parameters(depth, projection=True)
        # 16 · 32 + 2 · 32 + 32 · 64 + 2 · 64
        assert parameters(model) - residual_parameters(depth) == 2752

    def test_an_identity_shortcut_subsamples_and_pads_with_zero_channels(self):
        model = build_model("resnet20", {}, IMAGE, 10).eval()
        stem, blocks = model[:3], model[3:12]
        for block in blocks:
            for module in block.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.zeros_(module.weight)
        x = torch.rand(2, *IMAGE)

        with torch.no_grad():
            out = blocks(stem(x))
            expected = torch.zeros(2, 64, 8, 8)
            expected[:, :16] = stem(x)[:, :, ::4, ::4]
        assert torch.equal(out, expected)

    def test_a_projected_shortcut_is_a_convolution_of_one_pixel(self):
        torch.manual_seed(0)
        model = build_model("resnet20", {"shortcut": "projection"}, IMAGE, 10).eval()
        block = model[6]
        for conv in (block.conv1, block.conv2):
            nn.init.zeros_(conv.weight)
        x = torch.rand(2, 16, 32, 32)
        (kernel,) = [p for p in block.parameters() if p.shape == (32, 16, 1, 1)]

        with torch.no_grad():
            mixed = torch.einsum("oi,nihw->nohw", kernel[:, :, 0, 0], x[:, :, ::2, ::2])
            # A batch norm that has seen nothing divides by sqrt(1 + 1e-5).
            expected = (mixed / (1 + 1e-5) ** 0.5).relu()
        assert torch.allclose(block(x), expected, atol=1e-5)

    def test_a_convolution_as_shortcut_has_no_norm(self):
        torch.manual_seed(0)
        model = build_model("resnet56", {"shortcut": "convolution"}, IMAGE, 10)
        # 16 · 32 + 32 · 64
        assert parameters(model) - residual_parameters(56) == 2560

        block = model[12].eval()
        for conv in (block.conv1, block.conv2):
            nn.init.zeros_(conv.weight)
        x = torch.rand(2, 16, 32, 32)
        (kernel,) = [p for p in block.parameters() if p.shape == (32, 16, 1, 1)]
        with torch.no_grad():
            mixed = torch.einsum("oi,nihw->nohw", kernel[:, :, 0, 0], x[:, :, ::2, ::2])
        assert torch.allclose(block(x), mixed.relu(), atol=1e-5)

    def test_an_unknown_shortcut_brings_the_nearest_name(self, complains):
        with complains("shortcut", "'projected'", "did you mean 'projection'?"):
            build_model("resnet20", {"shortcut": "projected"}, IMAGE, 10)


class TestOutput:
    @pytest.mark.parametrize("name", ["cnn", "mlp", "resnet20", "resnet18", "squeezenet1_1"])
    @pytest.mark.parametrize("shape", [(1, 32, 32), (3, 40, 32)])
    def test_a_logit_per_class_comes_for_every_image(self, name, shape):
        model = build_model(name, {}, shape, 7)
        x = torch.rand(2, *shape)

        assert model(x).shape == (2, 7)
        check_output(model, x, 7, name)

    def test_a_perceptron_takes_features(self):
        assert build_model("mlp", {}, (13,), 3)(torch.rand(4, 13)).shape == (4, 3)


def test_a_perceptron_has_the_width_and_depth_it_is_given():
    model = build_model("mlp", {"width": 5, "depth": 3}, (1, 2, 2), 3)

    shapes = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Linear)]
    assert shapes == [(5, 4), (5, 5), (5, 5), (3, 5)]


def test_a_cnn_has_the_width_it_is_given():
    # Convolutions 1 → 4 → 8 → 16 with a batch norm each, then 16 · 2 · 2 features to 10 logits.
    expected = 9 * (4 + 4 * 8 + 8 * 16) + 2 * (4 + 8 + 16) + 64 * 10 + 10

    assert parameters(build_model("cnn", {"width": 4}, (1, 8, 8), 10)) == expected


class TestTorchvision:
    def test_on_colour_it_is_torchvisions_own(self):
        torch.manual_seed(3)
        ours = build_model("resnet18", {}, IMAGE, 10)
        torch.manual_seed(3)
        theirs = torchvision.models.resnet18(num_classes=10)

        assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))

    @pytest.mark.parametrize(
        # 7 × 7 × 64 without a bias, 3 × 3 × 64 with one
        ("name", "saved"),
        [("resnet18", 2 * 7 * 7 * 64), ("squeezenet1_1", 2 * 3 * 3 * 64)],
    )
    def test_on_grey_only_the_first_convolution_is_smaller(self, name, saved):
        grey, colour = (build_model(name, {}, (c, 64, 64), 10) for c in (1, 3))
        first, theirs = (
            next(m for m in model.modules() if isinstance(m, nn.Conv2d)) for model in (grey, colour)
        )

        assert parameters(colour) - parameters(grey) == saved
        assert first.in_channels == 1
        for part in ("kernel_size", "stride", "padding", "dilation"):
            assert getattr(first, part) == getattr(theirs, part)
        assert grey(torch.rand(2, 1, 64, 64)).shape == (2, 10)

    def test_arguments_reach_the_constructor(self):
        model = build_model("squeezenet1_1", {"dropout": 0.25}, IMAGE, 10)

        assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.25]


class TestMistakes:
    def test_an_unknown_model_brings_the_nearest_name(self, complains):
        with complains("unknown model 'resnet21'", "did you mean 'resnet"):
            build_model("resnet21", {}, IMAGE, 10)

    def test_an_argument_that_a_model_does_not_take_is_named(self, complains):
        with complains("'cnn'", "widht", "check model_args"):
            build_model("cnn", {"widht": 3}, IMAGE, 10)

    @pytest.mark.parametrize(
        ("name", "arguments"),
        [("mlp", {"width": -1}), ("cnn", {"width": -4}), ("squeezenet1_1", {"dropout": 7})],
    )
    def test_a_value_that_a_model_does_not_take_is_named(self, complains, name, arguments):
        with complains(repr(name), str(arguments), "model_args"):
            build_model(name, arguments, IMAGE, 10)

    @pytest.mark.parametrize("name", ["cnn", "resnet20", "resnet18"])
    def test_an_image_model_on_features_is_refused(self, complains, name):
        with complains(repr(name), "(13,)", "use mlp or a factory"):
            build_model(name, {}, (13,), 3)

    def test_a_factory_that_makes_no_module_is_refused(self, complains, write_module):
        write_module("not_a_model_for_tests", "def make():\n    return 'weights'\n")
        with complains("'not_a_model_for_tests:make'", "returned str", "torch.nn.Module"):
            build_model("not_a_model_for_tests:make", {}, IMAGE, 10)

    def test_a_factory_that_makes_a_lazy_module_is_refused(self, complains, write_module):
        write_module("lazy_for_tests", "from torch import nn\nmake = lambda: nn.LazyLinear(2)\n")
        with complains("'lazy_for_tests:make'", "'weight' without a shape", "sizes"):
            build_model("lazy_for_tests:make", {}, IMAGE, 10)

    def test_a_factory_gets_its_arguments_and_nothing_else(self, write_module):
        write_module(
            "linear_for_tests", "from torch import nn\ndef make(n):\n    return nn.Linear(n, 2)\n"
        )
        assert build_model("linear_for_tests:make", {"n": 5}, IMAGE, 10).in_features == 5


class TestCheckOutput:
    def test_too_few_logits_are_counted(self, complains):
        with complains("'mine'", "(2, 7)", "expected (2, 10)", "number of classes"):
            check_output(nn.Linear(4, 7), torch.rand(2, 4), 10, "mine")

    def test_an_output_of_another_kind_is_named(self, complains):
        class Pair(nn.Module):
            def forward(self, x):
                return x, x

        with complains("'mine'", "returns tuple", "expected (2, 4)"):
            check_output(Pair(), torch.rand(2, 4), 4, "mine")

    def test_an_output_with_more_dimensions_is_refused(self, complains):
        with complains("(2, 4, 4)", "expected (2, 4)"):
            check_output(nn.Identity(), torch.rand(2, 4, 4), 4, "mine")


def test_a_softmax_in_the_model_is_warned_of_and_a_log_softmax_is_not():
    inputs = torch.randn(2, 4)
    with pytest.warns(UserWarning, match="softmax"):
        check_output(nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=1)).eval(), inputs, 3, "soft")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_output(nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(dim=1)).eval(), inputs, 3, "log")
        check_output(nn.Linear(4, 3).eval(), inputs, 3, "logits")
