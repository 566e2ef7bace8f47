"""A released agent comes whole, is what was released, and lies beside the one that runs; nothing else gets in."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import httpx
import pytest
from tests.labapex.authority import Authority
from tests.labapex_worker import agent_wheels as wheels

from labapex.errors import LabApexError, MalformedInput
from labapex.protocol.canonical import canonical
from labapex.protocol.trust import Release
from labapex_worker import launch, releases
from labapex_worker.config import Home
from labapex_worker.releases import Shelf, UpdateFailed

AUTHORITY = Authority()


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    home = Home(tmp_path / "home")
    home.create()
    return Shelf(home)


class Platform:
    """Hands out one wheel; `cut` breaks each answer off after so many bytes, `resumes` is whether it knows ranges."""

    def __init__(self, wheel: bytes, *, cut: int | None = None, resumes: bool = True) -> None:
        self.wheel, self.cut, self.resumes = wheel, cut, resumes
        self.ranges: list[str | None] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        asked = request.headers.get("range")
        self.ranges.append(asked)
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.resumes else 0
        body = self.wheel[first:]
        if self.cut is not None:
            body = body[: self.cut]
        span = {"content-range": f"bytes {first}-{len(self.wheel) - 1}/{len(self.wheel)}"} if first else {}
        return httpx.Response(206 if first else 200, stream=httpx.ByteStream(body), headers=span)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self), base_url="http://platform")


def released(wheel: bytes, version: str = "9.0", *, python: str = releases.PYTHON) -> Release:
    digest = hashlib.sha256(wheel).hexdigest()
    return AUTHORITY.state("agent", version=version, digest=digest, size=len(wheel), python=python).release


async def fetched(shelf: Shelf, platform: Platform, release: Release) -> None:
    async with platform.client() as http:
        await releases.fetch(http, release, shelf)


async def test_a_release_is_unpacked_beside_the_others_and_counts_once_it_is_switched_to(shelf: Shelf) -> None:
    wheel = wheels.make("9.0")
    release = released(wheel)
    await fetched(shelf, Platform(wheel), release)
    assert (shelf.path / "9.0" / "labapex_worker" / "daemon.py").is_file()
    assert shelf.holds(release)
    assert shelf.newest() is None
    shelf.switch("9.0")
    assert shelf.newest() == "9.0"
    assert not list(shelf.path.glob("*.whl"))


@pytest.mark.parametrize("resumes", [True, False])
async def test_a_download_that_breaks_off_goes_on_or_begins_anew(shelf: Shelf, resumes: bool) -> None:
    wheel = wheels.make("9.0", whole=False, files={"labapex/x.py": "# " + "x" * 500})
    platform = Platform(wheel, cut=len(wheel) // 3 + 1 if resumes else None, resumes=resumes)
    path = shelf.path / f"{released(wheel).digest}.whl"
    shelf.path.mkdir()
    path.write_bytes(wheel[:100])
    await fetched(shelf, platform, released(wheel))
    assert platform.ranges[0] == "bytes=100-"
    assert len(platform.ranges) == (3 if resumes else 1)


@pytest.mark.parametrize("bent", ["altered", "longer", "another"])
async def test_what_is_not_what_was_released_is_deleted(shelf: Shelf, bent: str) -> None:
    wheel = wheels.make("9.0", whole=False)
    other = {"altered": wheel[:-1] + b"?", "longer": wheel + b"x", "another": wheels.make("9.1", whole=False)}[bent]
    with pytest.raises(LabApexError):
        await fetched(shelf, Platform(other, resumes=False), released(wheel))
    assert not (shelf.path / "9.0").exists()
    if bent == "altered":
        assert not list(shelf.path.glob("*.whl"))


async def test_a_platform_that_hands_out_nothing_is_given_up(shelf: Shelf) -> None:
    with pytest.raises(UpdateFailed, match="does not hand out"):
        await fetched(shelf, Platform(b""), released(wheels.make("9.0", whole=False)))


@pytest.mark.parametrize(
    "name",
    [
        "../evil.py",
        "/etc/evil.py",
        "os.py",
        "torch/__init__.py",
        "labapex/../../evil.py",
        "labapex\\..\\evil.py",
        "labapex.pth",
    ],
)
async def test_a_wheel_with_anything_but_the_agent_is_refused_though_it_was_released(shelf: Shelf, name: str) -> None:
    wheel = wheels.make("9.0", whole=False, files={name: "evil"})
    with pytest.raises(UpdateFailed, match="not the agent's"):
        await fetched(shelf, Platform(wheel), released(wheel))
    assert not (shelf.path / "9.0").exists()


async def test_a_link_a_bomb_and_a_wheel_of_another_version_are_refused(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        link = zipfile.ZipInfo("labapex/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UpdateFailed, match="not the agent's"):
        await fetched(shelf, Platform(made.getvalue()), released(made.getvalue()))
    monkeypatch.setattr(releases, "MAX_UNPACKED", 10_000)
    bomb = wheels.make("9.0", whole=False, files={"labapex/x.py": " " * 20_000})
    with pytest.raises(UpdateFailed, match="unpacks to more"):
        await fetched(shelf, Platform(bomb), released(bomb))
    other = wheels.make("9.1", whole=False)
    with pytest.raises(UpdateFailed):
        await fetched(shelf, Platform(other), released(other))
    nothing = b"no zip file at all"
    with pytest.raises(UpdateFailed, match="cannot be unpacked"):
        await fetched(shelf, Platform(nothing), released(nothing))


def test_only_newer_releases_that_this_host_can_run_and_that_did_not_fail_are_wanted(shelf: Shelf) -> None:
    good = released(b"x")
    assert releases.wanted(good, shelf)
    assert not releases.wanted(released(b"x", releases.running()), shelf)
    assert not releases.wanted(released(b"x", "0.0.1"), shelf)
    with pytest.raises(UpdateFailed, match=r"needs Python 3\.99"):
        releases.wanted(released(b"x", python="3.99"), shelf)
    with pytest.raises(UpdateFailed, match="are taken"):
        releases.wanted(good.model_copy(update={"size": releases.MAX_WHEEL + 1}), shelf)
    shelf.path.mkdir()
    shelf.failed.write_text(good.digest + "\n")
    assert not releases.wanted(good, shelf)


def shelved(shelf: Shelf, *versions: str) -> None:
    shelf.path.mkdir(exist_ok=True)
    for name in versions:
        (shelf.path / name).mkdir()
        (shelf.path / name / launch.MARK).write_text(f"digest-{name}")
        shelf.switch(name)


def test_a_version_that_did_not_come_up_is_gone_back_from_and_not_tried_again(shelf: Shelf) -> None:
    shelved(shelf, "9.0", "9.1")
    shelf.trying.write_text("9.1\n")
    assert shelf.go_back() is None, "its start may have been cut off from outside"
    shelf.trying.write_text("9.1\n9.1\n")
    assert shelf.go_back() == "9.1"
    assert shelf.newest() == "9.0"
    assert shelf.has_failed("digest-9.1")
    assert shelf.go_back() is None
    shelf.trying.write_text("9.0\n9.0\n")
    assert shelf.go_back() == "9.0"
    assert shelf.newest() is None, "nothing is left but what was installed"


def test_what_came_up_stays_and_all_but_it_and_the_one_before_are_deleted(shelf: Shelf) -> None:
    shelved(shelf, "9.0", "9.1", "9.2")
    shelf.trying.write_text("9.2\n9.2\n")
    shelf.came_up()
    assert shelf.go_back() is None
    assert shelf.newest() == "9.2"
    assert sorted(path.name for path in shelf.path.iterdir()) == ["9.1", "9.2", "current", "previous"]


def test_an_owner_who_installed_something_newer_by_hand_gets_that(shelf: Shelf) -> None:
    shelved(shelf, "0.0.1")
    assert shelf.newest() is None


async def test_what_the_platform_offers_is_read_with_a_limit() -> None:
    offered = AUTHORITY.state("agent", version="9.0", digest="ab" * 32, size=1)

    async def answer(status: int, content: bytes) -> object:
        transport = httpx.MockTransport(lambda _: httpx.Response(status, stream=httpx.ByteStream(content)))
        async with httpx.AsyncClient(transport=transport, base_url="http://platform") as http:
            return await releases.look(http)

    assert await answer(200, canonical(offered)) == offered
    assert await answer(404, b"") is None
    with pytest.raises(UpdateFailed, match="answers 500"):
        await answer(500, b"")
    with pytest.raises(MalformedInput):
        await answer(200, b"x" * 100_000)
    with pytest.raises(MalformedInput):
        await answer(200, b"{}")
