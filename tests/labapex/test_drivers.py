"""Which build of torch fits a GPU and its driver. They are told, not there: not run on a GPU."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labapex import drivers
from labapex.drivers import Build, NoBuild
from labapex.protocol.devices import Device


def gpu(driver: str | None, capability: str | None = "8.0") -> Device:
    return Device(kind="cuda", name="NVIDIA A100", driver=driver, capability=capability)


@pytest.mark.parametrize(
    ("driver", "cuda"),
    [
        ("580.65.06", 13), ("600.1", 13), ("579.99", 12), ("550.54.14", 12), ("525.60.13", 12), ("524.0", 11),
        ("450.80.02", 11), ("449.9", None), ("", None), ("unknown", None),
    ],
)  # fmt: skip
def test_a_driver_runs_the_builds_of_its_family_of_cuda_and_older_ones(driver: str, cuda: int | None) -> None:
    assert drivers.family(driver) == cuda


@pytest.mark.parametrize(
    ("driver", "build", "good", "said"),
    [
        ("550.54", Build("2.13.0+cu130", "13.0"), False, "2.13.0+cu130 needs driver 580 or newer"),
        ("550.54", Build("2.9.1+cu128", "12.8"), True, "is built for CUDA 12.8"),
        ("580.65", Build("2.9.1+cu128", "12.8"), True, "builds for CUDA 13 (cu13*) and older"),
        ("580.65", Build("2.13.0+cpu", None), False, "does not use the GPU"),
        ("580.65", None, False, "no torch is installed"),
        ("400.1", Build("2.13.0+cu130", "13.0"), False, "need 450 or newer"),
        (None, Build("2.13.0+cu130", "13.0"), False, "driver unknown"),
    ],
    ids=["too-new", "its-own", "older", "cpu", "none", "old-driver", "silent-driver"],
)
def test_a_build_that_does_not_run_is_told_with_what_does(
    driver: str | None, build: Build | None, good: bool, said: str
) -> None:
    fits, detail = drivers.fits(gpu(driver), build)
    assert fits is good
    assert said in detail


@pytest.mark.parametrize("line", ["cuda: Optional[str] = '13.0'", "cuda = '13.0'"])
def test_a_build_is_read_from_its_own_words_and_not_imported(tmp_path: Path, line: str) -> None:
    (tmp_path / "torch").mkdir()
    text = f"raise SystemExit('imported')\n__version__ = '2.13.0+cu130'\n{line}\nhip = None\n"
    (tmp_path / "torch" / "version.py").write_text(text)
    assert drivers.installed([tmp_path / "none", tmp_path]) == Build("2.13.0+cu130", "13.0")


def test_the_torch_that_runs_these_tests_is_read_as_what_it_is() -> None:
    import torch

    assert drivers.installed([Path(torch.__file__).parents[1]]) == Build(str(torch.__version__), torch.version.cuda)


HELD = ["2.13.0+cpu", "2.13.0+cu126", "2.13.0+cu128", "2.13.0+cu130"]


@pytest.mark.parametrize(
    ("driver", "capability", "chosen"),
    [
        ("580.95.05", "9.0", "cu130"),
        ("600.1", "12.0", "cu130"),
        ("550.54.14", "8.0", "cu128"),  # minor version compatibility
        ("525.60.13", "9.0", "cu128"),
        ("580.95.05", "7.0", "cu128"),  # a V100, for which CUDA 13 has no code
        ("580.95.05", "6.1", "cu126"),
        ("580.95.05", None, "cu130"),  # it does not tell
    ],
)
def test_a_host_is_to_have_the_newest_build_that_its_driver_and_its_gpu_run(
    driver: str, capability: str | None, chosen: str
) -> None:
    assert drivers.choose(HELD, gpu(driver, capability)) == f"2.13.0+{chosen}"


def test_a_host_without_a_gpu_is_to_have_the_build_for_cpus_and_one_with_cuda_where_there_is_none() -> None:
    assert drivers.choose(HELD, None) == "2.13.0+cpu"
    assert drivers.choose(HELD[2:], None) == "2.13.0+cu128"


def test_the_platforms_own_build_goes_wherever_it_runs() -> None:
    assert drivers.choose(HELD, gpu("580.1"), own="2.13.0+cu126") == "2.13.0+cu126"
    assert drivers.choose(HELD, None, own="2.13.0+cu130") == "2.13.0+cu130"
    assert drivers.choose(HELD, gpu("550.1"), own="2.13.0+cu130") == "2.13.0+cu128", "its driver does not run it"
    assert drivers.choose(HELD, gpu("580.1"), own="2.13.0+cpu") == "2.13.0+cu130", "its GPU would not be used"
    assert drivers.choose(HELD, None, own="2.13.0") == "2.13.0+cpu", "it is not held"


@pytest.mark.parametrize(
    ("held", "device", "said"),
    [
        (["2.13.0+cpu"], gpu("580.1"), "driver 580.1 runs builds for CUDA 13 (cu13*) and older; 2.13.0+cpu is built without"),
        (HELD[3:], gpu("550.1"), "driver 550.1 runs builds for CUDA 12 (cu12*) and older; 2.13.0+cu130 needs driver 580 or"),
        (HELD[1:2], gpu("580.1", "12.0"), "2.13.0+cu126 has no code for GPUs of compute capability 12.0"),
        (["2.13.0+cu140"], gpu("999.1"), "2.13.0+cu140 needs a driver that is not known here"),
        (HELD, gpu("390.1"), "driver 390.1: builds of torch need 450 or newer; 2.13.0+cpu is"),
        (HELD, gpu(None), "driver unknown: builds of torch need 450"),
        ([], None, "no build of torch is at hand"),
    ],
)  # fmt: skip
def test_where_no_build_runs_it_is_said_which_build_or_driver_is_missing(
    held: list[str], device: Device | None, said: str
) -> None:
    with pytest.raises(NoBuild) as refused:
        drivers.choose(held, device)
    assert said in str(refused.value)


versions = st.builds(
    "2.13.0+{}".format, st.one_of(st.just("cpu"), st.builds("cu{}{}".format, st.integers(11, 14), st.integers(0, 9)))
)
gpus = st.builds(
    gpu,
    st.one_of(st.none(), st.builds("{}.{}".format, st.integers(300, 700), st.integers(0, 99)), st.text(max_size=10)),
    st.one_of(st.none(), st.builds("{}.{}".format, st.integers(3, 13), st.integers(0, 9)), st.text(max_size=10)),
)


@given(st.lists(versions, unique=True), gpus, st.one_of(st.none(), versions))
def test_what_is_chosen_is_held_and_runs_and_nothing_newer_does_but_the_platforms_own_comes_first(
    held: list[str], device: Device, own: str | None
) -> None:
    runs = {
        torch for torch in held
        if (cuda := drivers.cuda(torch)) and drivers.fits(device, Build(torch, "{}.{}".format(*cuda)))[0]
    }  # fmt: skip
    if not runs:
        with pytest.raises(NoBuild) as refused:
            drivers.choose(held, device, own)
        assert all(torch in str(refused.value) for torch in held)
        return
    chosen = drivers.choose(held, device, own)
    assert chosen in runs
    assert chosen == own or (
        own not in runs and drivers.cuda(chosen) == max(drivers.cuda(torch) or (0, 0) for torch in runs)
    )


@given(st.lists(versions, unique=True, min_size=1), gpus, st.integers(300, 700))
def test_a_newer_driver_never_leads_to_an_older_build(held: list[str], device: Device, driver: int) -> None:
    def cuda(driver: int) -> tuple[int, int]:
        try:
            chosen = drivers.choose(held, device.model_copy(update={"driver": f"{driver}.1"}))
        except NoBuild:
            return 0, 0
        return drivers.cuda(chosen) or (0, 0)

    assert cuda(driver) <= cuda(driver + 50)


def test_the_tables_are_in_order_and_leave_no_gap() -> None:
    for table in (drivers.FAMILIES, drivers.CAPABILITIES):
        assert list(table) == sorted(table, reverse=True)  # type: ignore[type-var]
    for cuda, capability in product(range(110, 140), ("7.5", "8.0", "9.0")):  # what every build knows
        assert drivers.choose([f"2.13.0+cu{cuda}"], gpu("999.1", capability))
