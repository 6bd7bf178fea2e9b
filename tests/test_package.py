from __future__ import annotations

import subprocess
import sys

import pytest

import fewshot_ad
from fewshot_ad import exceptions


def test_import_is_light():
    code = "import sys, fewshot_ad; sys.exit(bool({'torch', 'sklearn', 'timm', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_import_only_what_they_need():
    """torchvision and timm take longer to import than torch: they are imported for networks and views only."""
    heavy = {"torchvision", "timm", "huggingface_hub", "torch._dynamo", "torch._inductor", "matplotlib", "ray"}
    code = (
        "import sys, fewshot_ad\n"
        "for name in ('KShotSplit', 'DualDistillationDetector', 'pretrain'):\n"
        "    getattr(fewshot_ad, name)\n"
        f"    assert not {heavy} & set(sys.modules), (name, {heavy} & set(sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names():
    for name in fewshot_ad.__all__:
        assert getattr(fewshot_ad, name) is not None
    assert set(fewshot_ad.__all__) == set(dir(fewshot_ad))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        fewshot_ad.nothing  # noqa: B018


@pytest.mark.parametrize("name", exceptions.__all__)
def test_errors_and_warnings_derive_from_builtins(name):
    kind = getattr(exceptions, name)
    builtin = [base for base in kind.__mro__ if base.__module__ == "builtins"]
    assert builtin[0] is not Exception or name == "FewShotADError"
    assert issubclass(kind, Warning) or issubclass(kind, exceptions.FewShotADError)
