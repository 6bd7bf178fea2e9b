"""`fewshot-ad weights` with a hub on this machine: download, checks, output and errors."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from helpers import PROXIES, write_random_weights
from huggingface_hub import constants
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fewshot_ad import cli
from fewshot_ad.exceptions import OutputError, OutputExistsError, WeightsNotFoundError
from fewshot_ad.files import fetching
from fewshot_ad.files.fetching import fetch_weights
from fewshot_ad.method.hub import WEIGHTS_FORMAT
from fewshot_ad.method.teacher import build_backbone

# A network of 0.3 MB with two tags, and a transformer whose weights timm renames on loading.
NAME, OTHER, VIT = "test_vit.r160_in1k", "test_resnet.r160_in1k", "test_vit3.r160_in1k"


class Hub(ThreadingHTTPServer):
    """Server of files like the hub, with sizes and checksums in headers; some files need a token."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.sums: dict[str, str] = {}
        self.gated = False
        self.commit = "0" * 40
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def put(self, name: str, content: bytes, digest: str | None = None, file: str = "model.safetensors") -> str:
        path = f"/timm/{name}/resolve/main/{file}"
        self.files[path] = content
        self.sums[path] = hashlib.sha256(content).hexdigest() if digest is None else digest
        return path


class Handler(BaseHTTPRequestHandler):
    """Request handler of `Hub`."""

    server: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path)
        refused = self.server.gated and "Authorization" not in self.headers
        self.send_response(403 if refused else 404 if content is None else 200)
        if refused or content is None:
            self.send_header("X-Error-Code", "GatedRepo" if refused else "EntryNotFound")
            content = b""
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", self.server.commit)
        self.send_header("ETag", f'"{self.server.sums.get(self.path, "")}"')
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    """An empty cache of the hub's client."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    for name in ("HF_TOKEN", *PROXIES, *map(str.upper, PROXIES)):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch, cache):
    """A hub with the weights of three networks."""
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    for module in ("huggingface_hub.file_download", "huggingface_hub.hf_api"):
        if hasattr(__import__(module, fromlist=["x"]), "HUGGINGFACE_CO_URL_TEMPLATE"):
            monkeypatch.setattr(f"{module}.HUGGINGFACE_CO_URL_TEMPLATE", template)
    for i, name in enumerate((NAME, OTHER, VIT)):
        server.put(name, write_random_weights(name, cache.parent / "w.safetensors", seed=i).read_bytes())
    yield server
    server.shutdown()
    server.server_close()


def refusal(call, *parts: str, error=WeightsNotFoundError) -> str:
    with pytest.raises(error) as caught:
        call()
    for part in parts:
        assert part in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", [NAME, OTHER, VIT])
def test_weights_are_downloaded_and_checked(hub, tmp_path, name):
    found = fetch_weights(name, tmp_path / "new" / "w")
    assert found.file == tmp_path / "new" / "w" / f"{name}.safetensors"
    assert sorted(path.name for path in found.file.parent.iterdir()) == [f"{name}.safetensors", f"{name}.txt"]
    ours = build_backbone(name, 160, weights=found.file)
    theirs = write_random_weights(name, tmp_path / "t.safetensors", seed=[NAME, OTHER, VIT].index(name))
    assert ours.fingerprint() == build_backbone(name, 160, weights=theirs).fingerprint()
    served = hub.files[f"/timm/{name}/resolve/main/model.safetensors"]
    assert found.checked == f"{len(served)} bytes, sha256 {hashlib.sha256(served).hexdigest()}"
    assert found.sha256 == hashlib.sha256(found.file.read_bytes()).hexdigest()
    note = found.note.read_text()
    licence = timm.models.get_pretrained_cfg(name).license
    for part in (name, licence, found.sha256, hub.url, hashlib.sha256(served).hexdigest(), "weights="):
        assert part in note


def test_command(hub, tmp_path, capsys):
    assert cli.main(["weights", NAME, "--to", str(tmp_path / "w"), "--quiet", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    assert found["backbone"] == NAME
    assert found["bytes"] == Path(found["file"]).stat().st_size
    assert cli.main(["weights", NAME, "--to", str(tmp_path / "w"), "--quiet"]) == 2
    assert "exists. Pass --force" in capsys.readouterr().err
    assert cli.main(["weights", NAME, "--to", str(tmp_path / "w"), "--quiet", "--force"]) == 0
    assert f"use it with --backbone {NAME} --weights {found['file']}" in capsys.readouterr().out


def test_name_without_a_tag(hub, tmp_path):
    config = timm.models.get_pretrained_cfg("test_vit")
    found = fetch_weights("test_vit", tmp_path)
    assert found.backbone == f"test_vit.{config.tag}" == NAME
    assert found.file.name == "test_vit.safetensors"
    build_backbone("test_vit", 160, weights=found.file)
    build_backbone(NAME, 160, weights=found.file)


def test_weights_with_another_tag(hub, tmp_path, monkeypatch):
    """The weights of another tag fit the network, but are refused, with both names."""
    network = "mobilenetv4_conv_small"
    first, second = f"{network}.{timm.models.get_pretrained_cfg(network).tag}", f"{network}.e1200_r224_in1k"
    content = write_random_weights(network, tmp_path / "w.safetensors").read_bytes()
    hub.put(second, content)
    found = fetch_weights(second, tmp_path)
    message = refusal(lambda: build_backbone(first, 64, weights=found.file), repr(first), repr(second), str(found.file))
    assert f"Name {second!r} as the backbone, or use the weights of {first!r}." in message
    refusal(lambda: build_backbone(network, 64, weights=found.file), f"{first!r}, the default of {network!r}")
    refusal(lambda: build_backbone("lcnet_050", 64, weights=found.file), repr(second), "'lcnet_050.")
    named = build_backbone(second, 64, weights=found.file)
    hub.put(first, content)
    taken = build_backbone(first, 64, weights=fetch_weights(first, tmp_path).file)
    assert named.fingerprint() == taken.fingerprint()


def test_weights_with_another_tag_in_a_command(hub, normal, tmp_path, capsys):
    hub.put(NAME, write_random_weights("test_vit", tmp_path / "w.safetensors").read_bytes())
    file = fetch_weights(NAME, tmp_path).file
    Image.fromarray(normal[0]).save(tmp_path / "0.png")
    command = ["fit", str(tmp_path / "0.png"), "-o", str(tmp_path / "m.fsad"), "--image-size", "160x160", "--quiet"]
    assert cli.main([*command, "--weights", str(file), "--backbone", "test_vit2"]) == 2
    message = capsys.readouterr().err
    assert "another network than the backbone's: 'test_vit.r160_in1k', not 'test_vit2.r160_in1k'" in message
    assert "Name 'test_vit.r160_in1k' as the backbone" in message


def test_offline_error_is_immediate(off_line, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "_look_up", lambda _: pytest.fail("timm was imported, which takes seconds"))
    began = time.monotonic()
    message = refusal(lambda: fetch_weights(NAME, tmp_path / "w"), NAME, "Name or service not known")
    assert time.monotonic() - began < 5
    assert f"Run `fewshot-ad weights {NAME} --to DIR` on a machine with network access" in message
    assert not (tmp_path / "w").exists()


def test_offline_advice_works(hub, tmp_path, monkeypatch, capsys):
    """The advice works: run the command on a machine with network access, copy the file, and fit offline."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    command = ["weights", NAME, "--to", str(tmp_path / "elsewhere"), "--quiet"]
    assert cli.main(command) == 2
    message = capsys.readouterr().err
    assert "HF_HUB_OFFLINE is set" in message
    assert "pass its path with --weights FILE" in message
    name = re.search(r"copy DIR/(\S+) here", message)[1]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert cli.main(command) == 0
    shutil.rmtree(constants.HF_HUB_CACHE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    shutil.copy(tmp_path / "elsewhere" / name, tmp_path / "copied.safetensors")
    build_backbone(NAME, 160, weights=tmp_path / "copied.safetensors")


def test_cached_weights_need_no_network(hub, tmp_path, monkeypatch):
    first = fetch_weights(NAME, tmp_path / "a")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.shutdown()
    again = fetch_weights(NAME, tmp_path / "b")
    assert again.sha256 == first.sha256
    assert again.checked == first.checked.split(", ")[1]


def test_file_differs_from_the_hub(hub, cache, tmp_path):
    path = hub.put(NAME, write_random_weights(NAME, tmp_path / "w.safetensors").read_bytes(), digest="0" * 64)
    message = refusal(
        lambda: fetch_weights(NAME, tmp_path / "out"), "differs from the file in the hub: sha256", "not 00000"
    )
    assert list((tmp_path / "out").iterdir()) == []
    damaged = Path(re.match(r"(\S+) differs from", message)[1])
    assert damaged.is_file()
    damaged.unlink()
    hub.sums[path] = hashlib.sha256(hub.files[path]).hexdigest()
    fetch_weights(NAME, tmp_path / "out")
    blob = next(cache.glob(f"*/blobs/{hub.sums[path]}"))
    blob.write_bytes(blob.read_bytes()[:-1])
    refusal(lambda: fetch_weights(NAME, tmp_path / "2"), str(blob.resolve()), "bytes, not", "Remove it, and run")
    blob.unlink()
    fetch_weights(NAME, tmp_path / "2")


@pytest.mark.parametrize("digest", [None, ""])
def test_small_files_have_a_git_checksum(hub, tmp_path, digest):
    content = write_random_weights(NAME, tmp_path / "w.safetensors").read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    hub.put(NAME, content, digest=git if digest is None else "W-odd")
    checked = fetch_weights(NAME, tmp_path).checked
    assert checked == f"{len(content)} bytes" + (f", git checksum {git}" if digest is None else "")


def test_weights_of_another_network(hub, tmp_path):
    hub.put(NAME, hub.files[f"/timm/{OTHER}/resolve/main/model.safetensors"])
    refusal(lambda: fetch_weights(NAME, tmp_path / "w"), "does not hold the weights of", "Missing key")
    assert list((tmp_path / "w").iterdir()) == []


def test_incomplete_weights(hub, tmp_path):
    state = timm.create_model(NAME).state_dict()
    del state["blocks.0.attn.qkv.weight"]
    save_file(state, tmp_path / "w.safetensors")
    hub.put(NAME, (tmp_path / "w.safetensors").read_bytes())
    refusal(lambda: fetch_weights(NAME, tmp_path / "w"), "blocks.0.attn.qkv.weight")


def test_pickled_file_is_read_as_weights_only(hub, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "touched",)

    del hub.files[f"/timm/{NAME}/resolve/main/model.safetensors"]
    state = timm.create_model(NAME).state_dict()
    torch.save({"state_dict": state}, tmp_path / "w.bin")
    hub.put(NAME, (tmp_path / "w.bin").read_bytes(), file="pytorch_model.bin")
    found = load_file(fetch_weights(NAME, tmp_path / "w").file)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)
    hub.commit = "1" * 40
    torch.save({"state_dict": state, "x": Evil()}, tmp_path / "w.bin")
    hub.put(NAME, (tmp_path / "w.bin").read_bytes(), file="pytorch_model.bin")
    refusal(lambda: fetch_weights(NAME, tmp_path / "2"), "does not hold the weights", "weights_only")
    assert not (tmp_path / "touched").exists()


def test_weights_outside_a_repository(hub, tmp_path, monkeypatch):
    content = write_random_weights(NAME, tmp_path / "w.safetensors")
    torch.save(load_file(content), tmp_path / "w.pth")
    served = (tmp_path / "w.pth").read_bytes()
    sums = hashlib.sha256(served).hexdigest()[:8]
    hub.files[f"/a/w-{sums}.pth"] = served
    config = timm.models.get_pretrained_cfg(NAME)
    monkeypatch.setattr(config, "hf_hub_id", None)
    monkeypatch.setattr(config, "url", f"{hub.url}/a/w-{sums}.pth")
    monkeypatch.setattr(timm.models, "get_pretrained_cfg", lambda *_, **__: config)
    found = fetch_weights(NAME, tmp_path / "w")
    assert found.checked == f"sha256 {sums}"
    assert load_file(found.file).keys() == load_file(content).keys()


def test_gated_weights(hub, tmp_path, monkeypatch):
    hub.gated = True
    message = refusal(lambda: fetch_weights(NAME, tmp_path / "w"), "terms must be accepted", f"{hub.url}/timm/{NAME}")
    assert "set the environment variable HF_TOKEN" in message
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    fetch_weights(NAME, tmp_path / "w")


def test_failing_hub(hub, tmp_path):
    hub.files.clear()
    refusal(
        lambda: fetch_weights(NAME, tmp_path / "w"),
        "could not be downloaded",
        "the repository has no model.safetensors",
    )


def test_names_without_weights(hub, tmp_path):
    refusal(lambda: fetch_weights("compact", tmp_path), "comes with the package")
    refusal(lambda: fetch_weights("test_vit.none", tmp_path), "Pass one of these names.")
    for name in ("no_such_network", "hf-hub:somebody/something", "toy_resnet"):
        refusal(lambda name=name: fetch_weights(name, tmp_path), repr(name), "Pass a name from timm.list_pretrained()")
    assert NAME in timm.list_pretrained()
    fetch_weights(NAME, tmp_path)


def test_existing_destinations(hub, tmp_path):
    (tmp_path / "file").touch()
    refusal(lambda: fetch_weights(NAME, tmp_path / "file"), "is a file. Name a folder with --to.", error=OutputError)
    found = fetch_weights(NAME, tmp_path / "folder")
    found.file.unlink()
    n_asked = len(hub.asked)
    refusal(lambda: fetch_weights(NAME, tmp_path / "folder"), str(found.note), error=OutputExistsError)
    assert len(hub.asked) == n_asked  # before any download
    assert fetch_weights(NAME, tmp_path / "folder", force=True).sha256 == found.sha256


def test_header(hub, tmp_path):
    found = fetch_weights(NAME, tmp_path)
    with safe_open(found.file, "pt") as file:
        header = json.loads(file.metadata()["header"])
    served = hub.files[f"/timm/{NAME}/resolve/main/model.safetensors"]
    assert header == {
        "backbone": NAME, "source": found.source, "sha256 of source": hashlib.sha256(served).hexdigest(),
        "licence": found.licence,
    }  # fmt: skip


def test_page_on_offline_machines(tmp_path, monkeypatch, capsys):
    """The page's Python runs on a file from torch, and its statement about the paper's network is true."""
    page = (Path(__file__).parents[1] / "docs" / "offline.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    page = page.replace("resnet18.tv_in1k", "lcnet_050.ra2_in1k")  # smaller
    state = load_file(write_random_weights("lcnet_050", tmp_path / "w.safetensors"))
    torch.save({"state_dict": state}, "teacher.pth")
    for block in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S):
        exec(block, names)
    written = load_file("teacher.safetensors")
    assert all(torch.equal(written[key], state[key]) for key in state)
    assert len(re.findall(r"-?1", capsys.readouterr().out)) == 2
    del state["conv_stem.weight"]
    torch.save(state, "teacher.pth")
    with pytest.raises(RuntimeError, match="Missing key"):
        exec(re.search(r"^```python\n(.*?)^```", page, re.M | re.S)[1], {})
    first, paper = (timm.models.get_pretrained_cfg(name).tag for name in ("wide_resnet50_2", "wide_resnet50_2.tv_in1k"))
    assert (first, paper) == ("racm_in1k", "tv_in1k")
    assert "`wide_resnet50_2` alone is `wide_resnet50_2.racm_in1k` in timm 1.0" in page


@pytest.mark.parametrize("header", [{}, {"header": "{"}, {"header": "[]"}, {"header": "{}"}])
def test_damaged_header(tmp_path, header):
    state = load_file(write_random_weights(NAME, tmp_path / "w.safetensors"))
    save_file(state, tmp_path / "w.safetensors", {"format": WEIGHTS_FORMAT, **header})
    refusal(lambda: build_backbone(NAME, 160, weights=tmp_path / "w.safetensors"), "w.safetensors is damaged")


def test_network_from_a_repository(hub, tmp_path, monkeypatch):
    """See `docs/backbones.md`: architecture and normalisation are the repository's, and the cache works offline."""
    state = timm.create_model("test_vit", init_values=1e-5, num_classes=0).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    trained = {
        "tag": "own",
        "input_size": [3, 160, 160],
        "fixed_input_size": True,
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
    }
    config = {
        "architecture": "test_vit", "num_classes": 0, "model_args": {"init_values": 1e-5},
        "pretrained_cfg": {**trained, "num_classes": 0, "first_conv": "patch_embed.proj", "classifier": "head"},
    }  # fmt: skip
    for file, content in (
        ("model.safetensors", (tmp_path / "w.safetensors").read_bytes()), ("config.json", json.dumps(config).encode())
    ):  # fmt: skip
        hub.files[f"/somebody/net/resolve/main/{file}"] = content
        hub.sums[f"/somebody/net/resolve/main/{file}"] = hashlib.sha256(content).hexdigest()
    found = build_backbone("hf-hub:somebody/net", 160)
    assert found.mean.flatten().tolist() == [0.5] * 3
    assert found.std.flatten().tolist() == [0.25] * 3
    assert any("ls1.gamma" in key for key in found.state_dict())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert build_backbone("hf-hub:somebody/net", 160).fingerprint() == found.fingerprint()


@pytest.mark.parametrize("page", ["README.md", "docs/choosing.md", "docs/method.md", "docs/backbones.md"])
def test_paper_network_has_the_paper_weights(page):
    text = (Path(__file__).parents[1] / page).read_text(encoding="utf-8")
    assert "wide_resnet50_2.tv_in1k" in text
    assert re.findall(r"wide_resnet50_2(?!\.tv_in1k)", text) == []
