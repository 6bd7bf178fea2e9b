"""The frozen teacher: stages, weights, normalisation, and errors."""

import logging
import pickle
import socket
from types import SimpleNamespace

import pytest
import timm
import torch
from helpers import write_random_weights
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from timm.data import resolve_data_config

from fewshot_ad.exceptions import OutOfMemoryError, WeightsNotFoundError
from fewshot_ad.method import teacher as module
from fewshot_ad.method.folding import fold_batch_norms
from fewshot_ad.method.teacher import build_backbone

# name, image size, channels, sides and strides of the maps, timm's numbers of the stages
NETWORKS = [
    ("resnet18", 64, (64, 128, 256, 512), (16, 8, 4, 2), (4, 8, 16, 32), (1, 2, 3, 4)),
    ("resnet18", 100, (64, 128, 256, 512), (25, 13, 7, 4), (4, 8, 16, 32), (1, 2, 3, 4)),
    ("mobilenetv2_100", 72, (24, 32, 96, 320), (18, 9, 5, 3), (4, 8, 16, 32), (1, 2, 3, 4)),
    ("convnext_atto", 64, (40, 80, 160, 320), (16, 8, 4, 2), (4, 8, 16, 32), (0, 1, 2, 3)),
    ("swin_s3_tiny_224", 64, (96, 192, 384, 768), (16, 8, 4, 2), (4, 8, 16, 32), (0, 1, 2, 3)),
]


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    """Write random weights of networks, once each, and delete them at the end."""
    folder, files = tmp_path_factory.mktemp("weights"), {}

    def get(name):
        if name not in files:
            files[name] = write_random_weights(name, folder / f"{name}.safetensors")
        return files[name]

    yield get
    for path in files.values():
        path.unlink()


@pytest.fixture(scope="module")
def toy_weights(random_weights):
    return random_weights("toy_resnet")


@pytest.mark.parametrize(("name", "size", "channels", "sides", "strides", "indices"), NETWORKS)
def test_stages(random_weights, name, size, channels, sides, strides, indices):
    backbone = build_backbone(name, size, weights=random_weights(name))
    info = backbone.model.feature_info
    assert (tuple(info.reduction()), tuple(info.out_indices)) == (strides, indices)
    assert backbone.channels == channels
    assert backbone.signed == (name != "resnet18",) * 4
    assert backbone.shapes == tuple((side, side) for side in sides)
    with torch.inference_mode():
        maps = backbone(torch.rand(2, 3, size, size))
    assert [tuple(m.shape) for m in maps] == [(2, c, side, side) for c, side in zip(channels, sides, strict=True)]

    config = resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    torch.testing.assert_close(backbone.mean.ravel(), torch.tensor(config["mean"]))
    torch.testing.assert_close(backbone.std.ravel(), torch.tensor(config["std"]))


def test_frozen_in_eval_mode(toy_weights):
    backbone = build_backbone("toy_resnet", 32, weights=toy_weights)
    assert not any(m.training for m in backbone.modules())
    assert not any(p.requires_grad for p in backbone.parameters())
    before = backbone.fingerprint()
    assert not any(m.requires_grad for m in backbone(torch.rand(2, 3, 32, 32)))
    assert backbone.fingerprint() == before


def test_images_are_normalised(toy_weights):
    backbone = build_backbone("toy_resnet", 32, weights=toy_weights)
    images = torch.rand(1, 3, 32, 32)
    expected = backbone.model((images - backbone.mean) / backbone.std)
    torch.testing.assert_close(backbone(images), expected, rtol=0, atol=0)


def test_weights_are_those_of_the_file(toy_weights):
    backbone = build_backbone("toy_resnet", 32, weights=str(toy_weights))
    stored = load_file(toy_weights)
    assert all(torch.equal(value, stored[key]) for key, value in backbone.model.state_dict().items())


def test_without_embedding(random_weights, tmp_path):
    # The deepest stage is not read from the file.
    stored = load_file(random_weights("test_resnet"))
    save_file({key: stored[key] for key in stored if not key.startswith("layer4.")}, tmp_path / "three.safetensors")
    backbone = build_backbone("test_resnet", 32, weights=tmp_path / "three.safetensors", embedding=False)
    assert backbone.channels == (32, 48, 192)
    assert len(backbone(torch.rand(1, 3, 32, 32))) == len(backbone.shapes) == len(backbone.signed) == 3


def test_fingerprint(toy_weights, tmp_path):
    backbone = build_backbone("toy_resnet", 32, weights=toy_weights)
    assert backbone.fingerprint() == build_backbone("toy_resnet", 64, weights=toy_weights).fingerprint()
    stored = load_file(toy_weights)
    stored["layer3.0.conv1.weight"][0, 0, 0, 0] += 1e-6
    save_file(stored, tmp_path / "other.safetensors")
    other = build_backbone("toy_resnet", 32, weights=tmp_path / "other.safetensors")
    assert backbone.fingerprint() != other.fingerprint()


def test_global_generator_is_not_changed(toy_weights):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        before = torch.get_rng_state()
        build_backbone("toy_resnet", 32, weights=toy_weights)
        assert torch.equal(torch.get_rng_state(), before)


def test_unused_classifier_weights_are_not_logged(random_weights, monkeypatch, caplog, capfd):
    monkeypatch.setattr(logging.getLogger("timm"), "level", logging.INFO)
    build_backbone("test_efficientnet", 32, weights=random_weights("test_efficientnet"))
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("timm").level == logging.INFO


def refusal(**options) -> str:
    """Return the message of the error in building the toy teacher."""
    with pytest.raises(WeightsNotFoundError) as caught:
        build_backbone(**({"name": "toy_resnet", "image_size": 32} | options))
    assert isinstance(caught.value, OSError)
    return str(caught.value)


def assert_two_ways_out(message: str) -> None:
    hub = "weights=None" in message or "timm.list_models" in message
    assert hub
    assert "safetensors file in timm's naming" in message


def test_unknown_backbone(toy_weights):
    message = refusal(name="resnet18_of_mine", weights=toy_weights)
    assert "'resnet18_of_mine'" in message
    assert "Pass a name from timm.list_models()" in message
    assert "weights=" not in message  # weights are available, and would not help


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, pickle.dumps({"fc.weight": 1}), None])
def test_unreadable_file(toy_weights, tmp_path, content):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(toy_weights.read_bytes()[:-100] if content is None else content)
    message = refusal(weights=path)
    assert str(path) in message
    assert_two_ways_out(message)


def test_missing_file(tmp_path):
    path = tmp_path / "weights.safetensors"
    message = refusal(weights=path)
    assert str(path) in message
    assert_two_ways_out(message)


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("the pickle was loaded",)


def test_pickled_weights_are_not_opened(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Bomb()))
    monkeypatch.setattr(module, "safe_open", lambda *_, **__: pytest.fail("the file was opened"))
    message = refusal(weights=path)
    assert str(path) in message
    assert "pickled" in message
    assert_two_ways_out(message)


def test_weights_of_another_architecture(tmp_path):
    path = write_random_weights("toy_resnet", tmp_path / "wide.safetensors", channels=(8, 16, 24, 40))
    message = refusal(weights=path)
    assert str(path) in message
    assert "'toy_resnet'" in message
    assert_two_ways_out(message)


@pytest.mark.parametrize(
    "missing", ["layer2.0.conv1.weight", "layer4.0.conv2.weight", "conv1.0.weight", "layer3.0.bn1.running_var"]
)
def test_missing_tensors(random_weights, tmp_path, missing):
    stored = load_file(random_weights("test_resnet"))
    del stored[missing]
    path = tmp_path / "part.safetensors"
    save_file(stored, path)
    message = refusal(name="test_resnet", weights=path)
    assert str(path) in message
    assert repr(missing) in message
    assert_two_ways_out(message)


def test_names_of_a_wrapped_transformer(random_weights, tmp_path):
    stored = load_file(random_weights("test_vit"))
    del stored["blocks.2.attn.qkv.bias"]
    save_file(stored, tmp_path / "part.safetensors")
    message = refusal(name="test_vit", weights=tmp_path / "part.safetensors")
    assert "1 are missing, among them 'model.blocks.2.attn.qkv.bias'" in message


def test_no_weights_offline(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    # Fails at once, where an OSError would be retried for a minute.
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: pytest.fail("HF_HUB_OFFLINE was set after the hub client was imported")
    )
    message = refusal(name="resnet18")
    assert "'resnet18'" in message
    assert_two_ways_out(message)


@pytest.mark.parametrize(
    ("name", "size"), [("vit_tiny_patch16_224", 8), ("convnext_atto", 16), ("toy_resnet", 0), ("toy_resnet", -1)]
)
def test_unsupported_image_size(name, size):
    with pytest.raises(ValueError, match=f"{name}.*image_size={size}") as caught:
        build_backbone(name, size)
    assert not isinstance(caught.value, WeightsNotFoundError)


# ---- folding


@pytest.mark.parametrize("where", ["create_model", "forward"])
def test_out_of_memory_is_not_a_wrong_network(toy_weights, monkeypatch, where):
    def ask(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 144000000 bytes.")

    hungry = torch.nn.Identity()
    hungry.forward = ask
    hungry.feature_info = SimpleNamespace(info=[{"reduction": stride} for stride in (4, 8, 16, 32)])
    monkeypatch.setattr(timm, "create_model", ask if where == "create_model" else lambda *_, **__: hungry)
    with pytest.raises(OutOfMemoryError, match=r"image_size=64\. Lower image_size"):
        build_backbone("toy_resnet", 64, weights=toy_weights)


@pytest.mark.parametrize(
    ("name", "n_folded"), [("resnet18", 20), ("mobilenetv2_100", 51), ("lcnet_100", 27), ("convnext_atto", 0)]
)
def test_folded_batch_norms_change_nothing(random_weights, name, n_folded):
    model = build_backbone(name, 64, weights=random_weights(name)).model
    generator = torch.Generator().manual_seed(0)
    for module_ in model.modules():
        if isinstance(module_, torch.nn.BatchNorm2d):
            for tensor in (module_.running_mean, module_.bias):
                tensor.data = torch.randn(tensor.shape, generator=generator)
            for tensor in (module_.running_var, module_.weight):
                tensor.data = torch.rand(tensor.shape, generator=generator) + 0.5
    model = model.double()
    images = torch.rand(3, 3, 64, 64, dtype=torch.float64, generator=generator)
    before = model(images)
    n_norms = sum(isinstance(module_, torch.nn.BatchNorm2d) for module_ in model.modules())
    assert fold_batch_norms(model, images[:1]) == n_norms == n_folded
    assert not any(isinstance(module_, torch.nn.BatchNorm2d) for module_ in model.modules())
    for folded, plain in zip(model(images), before, strict=True):
        torch.testing.assert_close(folded, plain, rtol=1e-9, atol=1e-9)


def test_convolution_with_a_second_consumer_is_not_folded():
    class Branching(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
            self.norm.running_mean += 1

        def forward(self, images):
            found = self.conv(images)
            return [found, self.norm(found)]

    model = Branching().eval()
    images = torch.rand(1, 3, 8, 8)
    before = model(images)
    assert fold_batch_norms(model, images) == 0
    assert isinstance(model.norm, torch.nn.BatchNorm2d)
    torch.testing.assert_close(model(images), before, rtol=0, atol=0)
