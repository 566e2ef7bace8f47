"""No Docker engine runs in these tests: what is shipped is read. `tests/e2e/test_stack.py` starts what it says."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from labapex_server.lib.config import Config

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OWN = {name: service for name, service in SERVICES.items() if service["image"].startswith("labapex/")}
IMAGES = sorted(DOCKER.glob("*.Dockerfile"))
SECRETS = runpy.run_path(str(DOCKER / "secrets.py"))


def tool(*command: str | Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name(str(command[0]))
    return subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_compose_file_is_one() -> None:
    said = tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", DOCKER / "compose.yaml")
    assert said.returncode == 0, said.stdout


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.stem)
def test_an_image_is_made_as_it_should_be(image: Path) -> None:
    said = tool("hadolint", image)
    assert (said.returncode, said.stdout) == (0, "")


def test_the_proxy_understands_its_file() -> None:
    if shutil.which("caddy") is None:
        assert not os.environ.get("CI"), "CI needs caddy"
        pytest.skip("caddy is not installed")
    command = ["caddy", "validate", "--config", str(DOCKER / "Caddyfile"), "--adapter", "caddyfile"]
    environment = {**os.environ, "LABAPEX_ADDRESS": "apex.example.org", "LABAPEX_CADDY_OPTIONS": ""}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "Valid configuration" in said.stdout + said.stderr, said.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_has_a_version(name: str) -> None:
    _, _, tag = SERVICES[name]["image"].partition(":")
    assert re.match(r"\d+\.\d+|\$\{LABAPEX_VERSION:-\d", tag)


def test_every_base_of_an_image_has_a_version_and_none_runs_as_root() -> None:
    for image in IMAGES:
        text = image.read_text()
        stages = set(re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE))
        for base in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
            assert base in stages or re.search(r":\d+\.\d+\.\d+", base), base
        assert re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1] == "10001:10001"


@pytest.mark.parametrize("name", OWN)
def test_a_process_of_ours_has_no_rights_that_it_does_not_need(name: str) -> None:
    service = OWN[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert "no-new-privileges:true" in service["security_opt"]
    assert "ports" not in service
    assert ("seccomp=unconfined" in service["security_opt"]) == (name == "verifier"), "only for the sandbox in it"


@pytest.mark.parametrize("name", OWN)
def test_a_process_of_ours_is_given_settings_that_exist(name: str) -> None:
    given = {key for key in OWN[name]["environment"] if key.startswith("LABAPEX_")} - {"LABAPEX_SECRETS_DIR"}
    given |= {key.upper() for key in OWN[name]["secrets"]}
    assert {key.removeprefix("LABAPEX_").lower() for key in given} <= set(Config.model_fields)


def test_only_the_proxy_can_be_reached_and_only_what_must_reaches_out() -> None:
    assert [name for name, service in SERVICES.items() if service.get("ports")] == ["proxy"]
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    outside = {name for name, service in SERVICES.items() if set(service["networks"]) != {"inside"}}
    assert outside == {"proxy", "web-1", "web-2", "stages", "verifier"}


def test_the_secrets_that_are_made_are_those_that_are_mounted(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    SECRETS["main"](folder)
    mounted = {each["file"] for each in COMPOSE["secrets"].values()}
    assert mounted == {f"./secrets/{path.name}" for path in folder.iterdir()}
    assert folder.stat().st_mode & 0o777 == 0o700
    used = {name for service in SERVICES.values() for name in _secrets(service)}
    assert used == set(COMPOSE["secrets"])


def _secrets(service: dict[str, Any]) -> list[str]:
    return [each["source"] if isinstance(each, dict) else each for each in service.get("secrets", ())]


def test_secrets_are_made_once_and_go_together(tmp_path: Path) -> None:
    SECRETS["main"](tmp_path)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    password = before["postgres_password"]
    assert f":{password}@postgres" in before["labapex_database_url"]
    assert before["labapex_object_store_secret"] in before["s3.json"]
    SECRETS["main"](tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before
    (tmp_path / "redis.conf").unlink()
    with pytest.raises(SystemExit, match=r"lacks redis\.conf"):
        SECRETS["main"](tmp_path)


def test_the_lock_of_the_images_has_what_the_platform_and_workers_need_in_the_versions_that_were_tested() -> None:
    tested, shipped = _locked(ROOT / "requirements.txt"), _locked(DOCKER / "requirements.txt")
    assert {name: tested[name] for name in shipped} == shipped
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for line in (*project["dependencies"], *extras["server"], *extras["worker"]):
        assert Requirement(line).name in shipped, f"{line} is not locked; run make lock"
    assert not {"pytest", "moto", "mypy", "torch"} & set(shipped)


def _locked(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", path.read_text(), re.MULTILINE))
