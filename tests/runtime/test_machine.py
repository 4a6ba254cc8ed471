"""What a node says of its machine."""

import pathlib

import pytest

from zmesh.runtime.machine import accelerator_name, accelerators, total_resources


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000"),
        ("NVIDIA GeForce RTX 3090", "GeForce-RTX-3090"),
        ("NVIDIA Titan", "Titan"),
        ("", "unknown"),
    ],
)
def test_a_kind_of_gpus_has_the_name_it_has_in_ray(model: str, name: str) -> None:
    assert accelerator_name(model) == name


def test_the_kinds_of_gpus_are_those_the_driver_tells(tmp_path: pathlib.Path) -> None:
    for bus, text in (("a", "Model: \t\t NVIDIA L4\nIRQ:   9\n"), ("b", "Model: NVIDIA L4\n"), ("c", "IRQ: 9\n")):
        (tmp_path / bus).mkdir()
        (tmp_path / bus / "information").write_text(text)
    assert accelerators(str(tmp_path)) == {"accelerator_type:L4": 1}
    assert accelerators(str(tmp_path / "none")) == {}


def test_a_kind_of_gpus_may_be_said_too() -> None:
    total = total_resources({"num_cpus": 1, "num_gpus": 0, "resources": {"accelerator_type:TPU-V4": 1}})
    assert total["accelerator_type:TPU-V4"] == 10_000
