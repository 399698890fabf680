from __future__ import annotations

import hashlib
import pickle
import shutil
import struct
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image
from sklearn.datasets import load_digits

import pipeline.data.datasets
from pipeline.data.batches import Batches
from pipeline.data.datasets import load_data
from pipeline.data.names import is_dataset_factory

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def fail(*_, **__):
        raise URLError("no network in tests")

    for module in ("cifar", "mnist", "utils"):
        monkeypatch.setattr(
            getattr(torchvision.datasets, module), "download_and_extract_archive", fail
        )


class TestDigits:
    data = load_data("digits", {}, "unused")

    def test_all_images_are_in_one_of_the_splits(self):
        bunch = load_digits()
        inputs = torch.cat([self.data.train[0], self.data.val[0]])
        labels = torch.cat([self.data.train[1], self.data.val[1]])

        assert self.data.num_classes == 10
        assert self.data.input_shape == (1, 8, 8)
        # A fifth of 1797 is 359.4, and scikit-learn rounds the test part up.
        assert self.data.sizes == (1437, 360)
        # Every image once, with its label behind its pixels, sorted.
        ours, theirs = (
            np.unique(np.column_stack([pixels, labels]), axis=0)
            for pixels, labels in [
                ((inputs * 16).round().int().flatten(1), labels),
                (bunch.data.astype(int), bunch.target),
            ]
        )
        assert np.array_equal(ours, theirs)
        assert (inputs.min(), inputs.max()) == (0, 1)

    def test_the_splits_have_the_classes_in_the_same_shares(self):
        shares = [torch.bincount(split[1]) / len(split[1]) for split in self.data_splits()]

        assert torch.allclose(*shares, atol=1 / 360)

    def test_the_split_is_the_same_whatever_the_random_state(self):
        np.random.seed(5)  # scikit-learn would draw from it
        torch.manual_seed(5)

        assert load_data("digits", {}, "elsewhere").digest == self.data.digest

    def test_mean_and_deviation_are_those_of_the_training_images(self):
        images = self.data.train[0].double().numpy()

        assert self.data.mean == pytest.approx([images.mean()], rel=1e-6)
        assert self.data.std == pytest.approx([images.std()], rel=1e-4)
        inputs = next(iter(Batches(self.data, 1437, CPU, train=True)))[0]
        assert float(inputs.mean()) == pytest.approx(0, abs=1e-4)
        assert float(inputs.std()) == pytest.approx(1, abs=1e-4)

    def data_splits(self):
        return self.data.train, self.data.val


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def pickled(path: Path, content: dict) -> list[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return [path.name, md5(path)]


@pytest.fixture
def cifar10(tmp_path, monkeypatch) -> tuple[Path, np.ndarray]:
    """Five files of four images and one of three, in CIFAR-10's python format."""
    dataset = torchvision.datasets.CIFAR10
    folder = tmp_path / dataset.base_folder
    images = pixels(23, 3 * 32 * 32)
    train = [
        pickled(
            folder / f"data_batch_{i + 1}",
            {"data": images[4 * i : 4 * i + 4], "labels": [i, 9, 2, 0]},
        )
        for i in range(5)
    ]
    test = pickled(folder / "test_batch", {"data": images[20:], "labels": [7, 8, 9]})
    meta = pickled(folder / "batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(dataset, "train_list", train)
    monkeypatch.setattr(dataset, "test_list", [test])
    monkeypatch.setattr(
        dataset, "meta", {"filename": "batches.meta", "key": "label_names", "md5": meta[1]}
    )
    return tmp_path, images.reshape(23, 3, 32, 32)


@pytest.fixture
def cifar100(tmp_path, monkeypatch) -> tuple[Path, np.ndarray]:
    dataset = torchvision.datasets.CIFAR100
    folder = tmp_path / dataset.base_folder
    images = pixels(9, 3 * 32 * 32)
    fine = [0, 99, 5, 5, 17, 42]
    train = pickled(folder / "train", {"data": images[:6], "fine_labels": fine, "coarse_labels": 0})
    test = pickled(folder / "test", {"data": images[6:], "fine_labels": [98, 1, 2]})
    names = [f"class {i}" for i in range(100)]
    meta = pickled(folder / "meta", {"fine_label_names": names})
    monkeypatch.setattr(dataset, "train_list", [train])
    monkeypatch.setattr(dataset, "test_list", [test])
    monkeypatch.setattr(
        dataset, "meta", {"filename": "meta", "key": "fine_label_names", "md5": meta[1]}
    )
    return tmp_path, images.reshape(9, 3, 32, 32)


def idx(path: Path, array: np.ndarray) -> None:
    """Write the IDX format: two zero bytes, 8 for bytes, the number of dimensions, each of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


def mnist_files(data_dir: Path, class_name: str) -> np.ndarray:
    images = pixels(15, 28, 28)
    raw = data_dir / class_name / "raw"
    idx(raw / "train-images-idx3-ubyte", images[:12])
    idx(raw / "train-labels-idx1-ubyte", np.arange(12, dtype=np.uint8) % 10)
    idx(raw / "t10k-images-idx3-ubyte", images[12:])
    idx(raw / "t10k-labels-idx1-ubyte", np.array([9, 0, 4], dtype=np.uint8))
    return images


def assert_statistics(data, train: np.ndarray) -> None:
    scaled = train / 255.0
    assert data.mean == pytest.approx(scaled.mean(axis=(0, 2, 3)), rel=1e-6)
    assert data.std == pytest.approx(scaled.std(axis=(0, 2, 3)), rel=1e-3)


class TestTorchvisionFiles:
    def test_cifar10(self, cifar10):
        data_dir, images = cifar10
        data = load_data("cifar10", {}, str(data_dir))

        assert data.num_classes == 10
        assert data.sizes == (20, 3)
        assert np.array_equal(data.train[0].numpy(), images[:20])
        assert np.array_equal(data.val[0].numpy(), images[20:])
        assert data.train[1].tolist() == [y for i in range(5) for y in (i, 9, 2, 0)]
        assert data.val[1].tolist() == [7, 8, 9]
        assert data.train[0].dtype == torch.uint8
        assert_statistics(data, images[:20])

    def test_cifar100_has_its_fine_labels(self, cifar100):
        data_dir, images = cifar100
        data = load_data("cifar100", {}, str(data_dir))

        assert data.num_classes == 100
        assert np.array_equal(data.train[0].numpy(), images[:6])
        assert np.array_equal(data.val[0].numpy(), images[6:])
        assert data.train[1].tolist() == [0, 99, 5, 5, 17, 42]
        assert data.val[1].tolist() == [98, 1, 2]
        assert_statistics(data, images[:6])

    @pytest.mark.parametrize(
        ("name", "class_name"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")]
    )
    def test_mnist_and_fashion_mnist_have_one_channel(self, tmp_path, name, class_name):
        images = mnist_files(tmp_path, class_name)
        data = load_data(name, {}, str(tmp_path))

        assert data.num_classes == 10
        assert data.input_shape == (1, 28, 28)
        assert np.array_equal(data.train[0][:, 0].numpy(), images[:12])
        assert np.array_equal(data.val[0][:, 0].numpy(), images[12:])
        assert data.train[1].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
        assert data.val[1].tolist() == [9, 0, 4]
        assert_statistics(data, images[:12, None])

    @pytest.mark.parametrize("name", ["cifar10", "cifar100"])
    def test_batches_can_be_cut(self, request, name):
        data_dir, _ = request.getfixturevalue(name)
        data = load_data(name, {}, str(data_dir))
        inputs, labels = next(iter(Batches(data, 6, CPU, train=True, augment="crop-flip")))

        assert inputs.shape == (6, 3, 32, 32)
        assert inputs.dtype == torch.float32
        assert labels.dtype == torch.int64

    def test_a_folder_behind_the_name_stands_in_for_data_dir(self, cifar10):
        data_dir, _ = cifar10
        assert load_data(f"cifar10:{data_dir}/", {}, "nowhere").sizes == (20, 3)

    @pytest.mark.parametrize(
        ("name", "class_name"),
        [
            ("cifar10", "CIFAR10"),
            ("cifar100", "CIFAR100"),
            ("mnist", "MNIST"),
            ("fashion_mnist", "FashionMNIST"),
        ],
    )
    def test_a_dataset_that_is_neither_there_nor_to_be_had_is_named(
        self, complains, tmp_path, name, class_name
    ):
        with complains(class_name, str(tmp_path), "data_dir"):
            load_data(name, {}, str(tmp_path))

    def test_a_damaged_cifar_file_is_not_read(self, complains, cifar10):
        data_dir, _ = cifar10
        damaged = data_dir / "cifar-10-batches-py" / "data_batch_3"
        damaged.write_bytes(damaged.read_bytes()[:-1])

        with complains("CIFAR10", str(data_dir)):
            load_data("cifar10", {}, str(data_dir))

    @pytest.mark.parametrize("kept", [0, 10, 5000])
    def test_a_damaged_mnist_file_is_named(self, complains, tmp_path, kept):
        mnist_files(tmp_path, "MNIST")
        damaged = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
        damaged.write_bytes(damaged.read_bytes()[:kept])

        with complains("MNIST", str(tmp_path)):
            load_data("mnist", {}, str(tmp_path))

    def test_a_data_dir_that_is_a_file_is_named(self, complains, tmp_path):
        (tmp_path / "file").write_text("")
        with complains("CIFAR10", str(tmp_path / "file")):
            load_data("cifar10", {}, str(tmp_path / "file"))


def saved(path: Path, array: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return array


def class_folders(root: Path, per_class: int = 10, names: str = "abc") -> dict[str, np.ndarray]:
    """Images of 16 × 16 by their path, made of random pixels in a format without loss."""
    rng = np.random.default_rng(7)
    return {
        str(path): saved(path, rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        for name in names
        for path in [root / name / f"{index:02}.png" for index in range(per_class)]
    }


class TestImagefolder:
    def test_train_and_val_folders_are_the_splits(self, tmp_path):
        train = class_folders(tmp_path / "train", 4)
        val = class_folders(tmp_path / "val", 2)
        data = load_data(f"imagefolder:{tmp_path}", {"size": 16}, "unused")

        assert data.num_classes == 3
        assert data.train[1].tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert data.val[1].tolist() == [0, 0, 1, 1, 2, 2]
        for split, files in [(data.train, train), (data.val, val)]:
            expected = np.stack([files[path] for path in sorted(files)]).transpose(0, 3, 1, 2)
            assert split[0].dtype == torch.uint8
            assert np.array_equal(split[0].numpy(), expected)
        assert_statistics(data, data.train[0].numpy())

    def test_plain_class_folders_are_split_alike_for_every_class(self, tmp_path):
        files = class_folders(tmp_path, 10)
        data = load_data(f"imagefolder:{tmp_path}", {"size": 16}, "unused")

        assert torch.bincount(data.train[1]).tolist() == [8, 8, 8]
        assert torch.bincount(data.val[1]).tolist() == [2, 2, 2]
        of_class = {
            array.tobytes(): "abc".index(Path(path).parent.name) for path, array in files.items()
        }
        seen = [
            (image.permute(1, 2, 0).contiguous().numpy().tobytes(), label)
            for split in (data.train, data.val)
            for image, label in zip(split[0], split[1].tolist(), strict=True)
        ]
        assert dict(seen) == of_class
        assert len(seen) == 30

    def test_the_folder_may_be_data_dir(self, tmp_path):
        class_folders(tmp_path, 5)
        assert load_data("imagefolder", {"size": 16}, str(tmp_path)).sizes == (12, 3)

    def test_images_are_cropped_to_the_middle_square(self, tmp_path):
        rng = np.random.default_rng(0)
        wide = saved(tmp_path / "train/a/wide.png", rng.integers(0, 256, (64, 128, 3), np.uint8))
        tall = saved(tmp_path / "train/b/tall.png", rng.integers(0, 256, (100, 64, 3), np.uint8))
        class_folders(tmp_path / "val", 1, "ab")
        data = load_data(f"imagefolder:{tmp_path}", {}, "unused")

        assert data.input_shape == (3, 64, 64)
        assert np.array_equal(data.train[0][0].numpy(), wide.transpose(2, 0, 1)[:, :, 32:96])
        assert np.array_equal(data.train[0][1].numpy(), tall.transpose(2, 0, 1)[:, 18:82, :])

    def test_images_are_resized_by_their_shorter_side(self, tmp_path):
        # Halves of one colour each: a middle square has both, whatever the interpolation.
        image = np.zeros((40, 80, 3), np.uint8)
        image[:, 40:] = 200
        saved(tmp_path / "train/a/0.png", image)
        saved(tmp_path / "val/a/0.png", image)
        data = load_data(f"imagefolder:{tmp_path}", {"size": 10}, "unused")

        pixels = data.train[0][0]
        assert pixels.shape == (3, 10, 10)
        assert (pixels[:, :, :4] == 0).all()
        assert (pixels[:, :, 6:] == 200).all()

    def test_grey_and_transparent_images_become_rgb(self, tmp_path):
        grey = np.full((16, 16), 90, np.uint8)
        saved(tmp_path / "train/a/0.png", grey)
        saved(tmp_path / "train/a/1.png", np.dstack([grey, grey, grey, grey]))
        class_folders(tmp_path / "val", 1, "a")
        data = load_data(f"imagefolder:{tmp_path}", {"size": 16}, "unused")

        assert data.train[0].shape == (2, 3, 16, 16)
        assert (data.train[0] == 90).all()

    def test_images_that_do_not_fit_are_read_batch_by_batch_and_are_the_same(
        self, tmp_path, monkeypatch
    ):
        class_folders(tmp_path, 10)
        fits = load_data(f"imagefolder:{tmp_path}", {"size": 12}, "unused")
        monkeypatch.setattr(pipeline.data.datasets, "IN_MEMORY_BYTES", 0)
        read = load_data(f"imagefolder:{tmp_path}", {"size": 12}, "unused")

        assert isinstance(fits.train, tuple)
        assert not isinstance(read.train, tuple)
        assert read.sizes == fits.sizes == (24, 6)
        assert (read.mean, read.std, read.num_classes, read.input_shape) == (
            fits.mean,
            fits.std,
            fits.num_classes,
            fits.input_shape,
        )
        for name in ("train", "val"):
            split, (images, labels) = getattr(read, name), getattr(fits, name)
            for index in range(len(split)):
                assert torch.equal(split[index][0], images[index])
                assert split[index][1] == labels[index]
        for one, other in zip(
            Batches(read, 4, CPU, train=False), Batches(fits, 4, CPU, train=False), strict=True
        ):
            assert all(map(torch.equal, one, other))

    @pytest.mark.parametrize("augment", ["none", "crop-flip"])
    def test_processes_that_read_give_the_same_batches(self, tmp_path, monkeypatch, augment):
        class_folders(tmp_path, 10)
        monkeypatch.setattr(pipeline.data.datasets, "IN_MEMORY_BYTES", 0)

        def made(workers: int) -> list[torch.Tensor]:
            data = load_data(f"imagefolder:{tmp_path}", {"size": 12}, "unused")
            batches = Batches(data, 4, CPU, train=True, augment=augment, loader_workers=workers)
            return [tensor for _ in range(2) for batch in batches for tensor in batch]

        one, other = made(0), made(2)
        assert len(one) == len(other) == 2 * 2 * 6
        assert all(map(torch.equal, one, other))

    def test_the_digest_of_images_on_disk_does_not_depend_on_where_they_are(
        self, tmp_path, monkeypatch
    ):
        class_folders(tmp_path / "here", 5)
        shutil.copytree(tmp_path / "here", tmp_path / "there")
        shutil.copytree(tmp_path / "here", tmp_path / "fewer")
        (tmp_path / "fewer" / "a" / "00.png").rename(tmp_path / "fewer" / "a" / "99.png")
        monkeypatch.setattr(pipeline.data.datasets, "IN_MEMORY_BYTES", 0)
        here, there, fewer = (
            load_data(f"imagefolder:{tmp_path / name}", {"size": 12}, "unused").digest
            for name in ("here", "there", "fewer")
        )

        assert here != fewer
        assert here == there

    def test_a_folder_that_is_not_there_is_named(self, complains, tmp_path):
        with complains(f"{tmp_path}/nothing", "imagefolder:PATH"):
            load_data(f"imagefolder:{tmp_path}/nothing", {}, "unused")

    def test_a_folder_without_classes_is_named(self, complains, tmp_path):
        with complains(str(tmp_path), "<class>"):
            load_data(f"imagefolder:{tmp_path}", {}, "unused")

    def test_a_class_without_images_is_named(self, complains, tmp_path):
        class_folders(tmp_path, 3)
        (tmp_path / "empty").mkdir()
        with complains("empty", "<class>"):
            load_data(f"imagefolder:{tmp_path}", {}, "unused")

    def test_splits_with_different_classes_are_refused(self, complains, tmp_path):
        class_folders(tmp_path / "train", 1, "ab")
        class_folders(tmp_path / "val", 1, "ac")
        with complains("['a', 'b']", "['a', 'c']"):
            load_data(f"imagefolder:{tmp_path}", {}, "unused")

    def test_too_few_images_to_split_are_counted(self, complains, tmp_path):
        class_folders(tmp_path, 1, "abc")
        with complains("3 examples cannot be split"):
            load_data(f"imagefolder:{tmp_path}", {}, "unused")

    def test_a_file_that_is_no_image_is_named(self, complains, tmp_path):
        class_folders(tmp_path, 5)
        (tmp_path / "b" / "02.png").write_bytes(b"not an image")
        with complains("02.png"):
            load_data(f"imagefolder:{tmp_path}", {"size": 16}, "unused")

    @pytest.mark.parametrize("size", [0, -3])
    def test_a_size_below_one_is_refused(self, complains, tmp_path, size):
        class_folders(tmp_path, 5)
        with complains(str(size), "size"):
            load_data(f"imagefolder:{tmp_path}", {"size": size}, "unused")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("cifar1", "cifar10"), ("digit", "digits"), ("fashion-mnist", "fashion_mnist")],
)
def test_an_unknown_dataset_brings_the_nearest_name(complains, name, nearest):
    with complains(f"unknown dataset {name!r}", f"did you mean {nearest!r}?"):
        load_data(name, {}, "unused")


def test_an_argument_that_a_dataset_does_not_take_is_named(complains):
    with complains("'digits'", "size", "check dataset_args"):
        load_data("digits", {"size": 3}, "unused")


class TestFactoryNames:
    @pytest.mark.parametrize("name", ["imagefolder:photos", "digits:x", "digits", "imagefolder:/a"])
    def test_a_known_prefix_is_no_factory(self, name):
        assert not is_dataset_factory(name)

    @pytest.mark.parametrize("name", ["mine:photos", "package.digits:make"])
    def test_a_module_of_ones_own_is_one(self, name):
        assert is_dataset_factory(name)

    @pytest.mark.parametrize("path", ["photos", "/a/long/path/to/many/photos"])
    def test_a_misspelt_prefix_brings_the_nearest_name(self, complains, path):
        with complains("dataset 'imagefoldr'", "did you mean 'imagefolder'?"):
            load_data(f"imagefoldr:{path}", {}, "data")

    def test_a_module_with_a_name_like_a_prefix_is_used(self, write_module, complains):
        write_module("digitz", "def make():\n    import not_installed_at_all\n")
        with complains("'digitz:make' raised ModuleNotFoundError", "not_installed_at_all"):
            load_data("digitz:make", {}, "data")
