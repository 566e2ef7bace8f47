from __future__ import annotations

from pathlib import Path

from tests.labapex.cli.conftest import Labapex
from tests.labapex.memory_platform import OFFERS, MemoryPlatform

from labapex.protocol.api import Scope
from labapex.protocol.spec import CREDIT


def test_offers_are_a_table_for_people_and_all_of_them_for_programs(labapex: Labapex, platform: MemoryPlatform) -> None:
    result = labapex("offers", "--device", "a", "--min-memory", "24GB", "--sort", "value")
    assert result.code == 0
    head, basement, attic = result.out.splitlines()
    assert head.split()[:3] == ["host", "device", "memory"]
    assert basement.rstrip().endswith("  free")
    for words in ("0.5", "310", "620", "25", "95, 17 verified"):
        assert words in basement
    for words in ("2 × cuda: NVIDIA H200", "not shown", "0, 0 verified", "busy, 22:00-07:00 UTC"):
        assert words in attic
    assert [offer["id"] for offer in labapex("offers", "--json").json] == [str(offer.id) for offer in OFFERS]


def test_where_there_is_no_offer_it_is_said_why(labapex: Labapex) -> None:
    result = labapex("offers", "--max-price", "0.1")
    assert "There are none: no host for 0.1 credits an hour; the cheapest asks 0.5." in result.err
    assert labapex("offers", "--max-price", "0.1", "--json").json == []


def test_a_filter_that_is_none_is_a_usage_error(labapex: Labapex, platform: MemoryPlatform) -> None:
    result = labapex("offers", "--min-memory", "much")
    assert (result.code, "min_memory" in result.err) == (2, True)
    assert labapex("offers", "--sort", "luck").code == 2
    assert platform.seen == []


def test_a_hosts_name_cannot_command_the_terminal(labapex: Labapex, platform: MemoryPlatform) -> None:
    platform.offers = (OFFERS[0].model_copy(update={"name": "\x1b[2Jevil\nhost"}),)
    out = labapex("offers").out
    assert "\x1b" not in out
    assert "evil host" in out


def test_run_says_before_it_asks_how_many_hosts_fit_and_how_long_the_budget_lasts(
    labapex: Labapex, platform: MemoryPlatform, job_folder: Path
) -> None:
    plan = " ".join(labapex("run", job_folder, "-y", "-d").err.split())
    assert "hosts any" in plan
    assert "offers 2 offers fit, 1 free now; from 0.5 credits an hour, at which the budget lasts 20 h" in plan
    with (job_folder / "labapex.yaml").open("a") as file:
        file.write("device: H100\nmin_memory: 80GB\nmax_price: 0.1\nmin_speed: 1000\n")
    plan = " ".join(labapex("run", job_folder, "-y", "-d").err.split())
    assert (
        "with a device named 'H100', with 80 GB, for 0.1 credits an hour at most, that have shown 1,000 GFLOP/s" in plan
    )
    assert "none fits now, and the job would wait: no host for 0.1 credits an hour; the cheapest asks 0.5" in plan
    assert [job.view.spec.device for job in platform.jobs.values()] == [None, "H100"]


def test_balance_is_in_credits_and_as_json_in_micro_credits(labapex: Labapex, platform: MemoryPlatform) -> None:
    platform.available = 5 * CREDIT // 2
    assert labapex("balance").out.split() == ["available", "2.5", "held", "0", "spent", "0.001677"]
    assert labapex("balance", "--json").json == {"available": 2_500_000, "held": 0, "spent": 1_677}


def test_a_token_that_may_not_see_money_is_told_which_scope_it_lacks(
    labapex: Labapex, platform: MemoryPlatform
) -> None:
    platform.scopes = (Scope.JOBS_READ,)
    result = labapex("balance")
    assert (result.code, "billing:read" in result.err) == (3, True)


def test_a_statement_is_a_table_the_oldest_entry_first_and_json_or_csv_for_programs(labapex: Labapex) -> None:
    result = labapex("statement")
    assert [line.split()[2] for line in result.out.splitlines()[1:]] == ["100", "-10", "5"]
    assert "2026-11: 0 credits at its beginning, 95 at its end" in result.err
    told = labapex("statement", "2026-11", "--json").json
    assert ([entry["amount"] for entry in told["results"]], told["closing"]) == (
        [5 * CREDIT, -10 * CREDIT, 100 * CREDIT],
        95 * CREDIT,
    )
    assert labapex("statement", "2026-11", "--csv").out == "at,credits\n2026-11,1\n"  # and nothing for the terminal
