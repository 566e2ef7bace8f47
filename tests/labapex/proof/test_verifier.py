"""A folder whose every digest fits still has to be the truth: what a cheat who knows the format is told."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.labapex.proof.forge import Forgery, replayer, rounded_elsewhere
from tests.labapex.proof.lab import Lab

from labapex.errors import LabApexError, MalformedInput, NotJudgeable, Tampered, UsageError
from labapex.proof import chunks, doubts, folder, sources, span, statefile, verifier
from labapex.proof.challenge import draw, draw_chunk
from labapex.proof.evidence import Evidence, Further
from labapex.proof.folder import Asked
from labapex.proof.verifier import AuditPolicy, Replayed, parse_policy
from labapex.protocol.replay import ReplayReport, ReplayRequest
from labapex.protocol.verdict import Verdict, Weight

Verify = Callable[..., Verdict]


@pytest.fixture
def verify(lab: Lab, recorded: Path, tmp_path: Path) -> Verify:
    data = recorded / "job" / "data"

    def judge(root: Path, **policy: object) -> Verdict:
        proof = folder.read(root)
        terms = parse_policy(policy)
        replay = replayer(lab, proof, data, tmp_path / "scratch")
        return verifier.verify(proof, policy=terms, random=random.SystemRandom(), replay=replay)

    return judge


@pytest.fixture
def forged(recorded: Path) -> Forgery:
    return Forgery.of(folder.read(recorded / "proof"))


def here(proof: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(proof, tmp_path / "proof"))


# -- honest ------------------------------------------------------------------------------------------------------------


def test_an_honest_proof_is_verified_and_every_rule_that_decides_has_passed(
    verify: Verify, recorded: Path, tmp_path: Path
) -> None:
    verdict = verify(here(recorded / "proof", tmp_path))
    assert (verdict.verdict, verdict.deciding_rule, verdict.replay_max_error) == ("verified", None, 0.0)
    deciding = {rule.rule: rule.result for rule in verdict.rules if rule.weight is Weight.DECIDES}
    assert {rule for rule, result in deciding.items() if result != "pass"} == {"uniqueness"}  # nobody is there to ask
    assert {"replay", "weights", "leaf-claims"} <= set(deciding)
    assert verdict.cost.segments_replayed == 6
    assert "all 6 segments" in verdict.detection


def test_a_smaller_audit_replays_less_and_says_what_that_proves(
    verify: Verify, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doubts, "DOUBTS", ())  # each would replay more
    verdict = verify(here(recorded / "proof", tmp_path), audit_segments=1, top_q=0)
    assert verdict.verdict == "verified"
    assert 2 <= verdict.cost.segments_replayed <= 3
    assert "1 of 6 segments were drawn at random" in verdict.detection
    assert "10%" in verdict.detection


def test_what_a_platform_opened_is_replayed_and_the_rest_is_named(
    verify: Verify, forged: Forgery, tmp_path: Path
) -> None:
    drawn = challenged(forged, tmp_path, audit_segments=1, top_q=0, ends=False)
    opened = {index: path for index, path in drawn.states.items() if drawn.asked and index in drawn.asked.indices}
    replayed = len(opened.keys() - {6})
    assert replayed < 6
    verdict = verify(replace(drawn, states=opened).write(tmp_path / "proof"))
    assert verdict.verdict == "verified"
    assert verdict.cost.segments_replayed == replayed
    assert f"{replayed} of 6 segments were replayed, of those that the platform had opened" in verdict.detection


def test_a_state_that_a_platform_asked_for_cannot_be_left_out(verify: Verify, forged: Forgery, tmp_path: Path) -> None:
    drawn = challenged(forged, tmp_path)
    for index in (3, 6):
        states = {n: path for n, path in drawn.states.items() if n != index}
        verdict = verify(replace(drawn, states=states).write(tmp_path / f"without {index}"))
        assert (verdict.verdict, verdict.deciding_rule) == ("rejected", "opening")
        assert f"the first is {index}" in verdict.reason


def test_a_platforms_folder_that_does_not_say_what_was_asked_for_proves_nothing(
    verify: Verify, forged: Forgery, tmp_path: Path
) -> None:
    forged.origin, forged.weights = "platform", None
    verdict = verify(forged.write(tmp_path / "proof"))
    assert (verdict.verdict, verdict.deciding_rule) == ("rejected", "opening")


# -- lies that fit -----------------------------------------------------------------------------------------------------


def forge_a_loss(forged: Forgery) -> None:
    forged.losses[3] *= 0.999


def skip_the_last_segment(forged: Forgery) -> None:
    forged.leaf(6, state=forged.leaves[5].state, size=forged.leaves[5].size)
    forged.states[6] = forged.states[5]


def claim_another_seed(forged: Forgery) -> None:
    forged.terms(seed="0" * 64)


def claim_another_learning_rate(forged: Forgery) -> None:
    forged.terms(args=("--lr", "0.05"))


def claim_other_batches(forged: Forgery) -> None:
    forged.leaf(4, batches="1" * 64)


def claim_a_smaller_update(forged: Forgery) -> None:
    norm = forged.leaves[2].update_norm
    assert norm is not None
    forged.leaf(2, update_norm=norm / 2)


def claim_that_the_first_leaf_is_none(forged: Forgery) -> None:
    forged.leaf(0, update_norm=1.0)


def do_nothing_on_another_class_of_host(forged: Forgery) -> None:
    """Between classes digests may differ; doing nothing has a relative error of one."""
    assert forged.environment is not None
    forged.environment = forged.environment.model_copy(update={"device": "cuda: NVIDIA H200"})
    skip_the_last_segment(forged)


@pytest.mark.parametrize(
    ("lie", "rule"),
    [
        (forge_a_loss, "point-loss"),
        (skip_the_last_segment, "replay"),
        (claim_another_seed, "initialisation"),
        (claim_another_learning_rate, "initialisation|point-loss|replay"),
        (claim_other_batches, "batch-order"),
        (claim_a_smaller_update, "leaf-claims"),
        (claim_that_the_first_leaf_is_none, "leaf-claims"),
        (do_nothing_on_another_class_of_host, "point-loss|replay"),
    ],
    ids=lambda each: getattr(each, "__name__", each),
)
def test_a_lie_that_fits_all_digests_is_rejected_by_its_rule(
    verify: Verify, forged: Forgery, tmp_path: Path, lie: Callable[[Forgery], None], rule: str
) -> None:
    lie(forged)
    forged.rechain()
    verdict = verify(forged.write(tmp_path / "proof"), line={"start": 1e-6, "error": 0.05, "loss": 1e-3})
    assert verdict.verdict == "rejected"
    assert verdict.deciding_rule in rule.split("|"), verdict.reason


def test_weights_of_another_step_are_not_the_proofs(verify: Verify, forged: Forgery, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    assert forged.weights is not None
    plain = forged.weights.read_bytes()
    other.write_bytes(plain[:-1] + bytes([plain[-1] ^ 1]))
    forged.weights = other
    verdict = verify(forged.write(tmp_path / "proof"))
    assert (verdict.verdict, verdict.deciding_rule) == ("rejected", "weights")


def test_a_state_that_is_not_the_committed_one_is_found_before_it_is_used(
    verify: Verify, forged: Forgery, tmp_path: Path
) -> None:
    other = tmp_path / "other.safetensors"
    plain = forged.states[2].read_bytes()
    other.write_bytes(plain[:-1] + bytes([plain[-1] ^ 1]))
    forged.states[2] = other
    verdict = verify(forged.write(tmp_path / "proof"))
    assert (verdict.verdict, verdict.deciding_rule) == ("rejected", "opening")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.data())
def test_a_leaf_that_was_changed_after_the_fact_breaks_the_chain_without_a_replay(
    forged: Forgery, tmp_path: Path, data: st.DataObject
) -> None:
    leaves = list(forged.leaves)
    index = data.draw(st.integers(0, len(leaves) - 2), label="leaf")
    changes = {
        "state": "1" * 64,
        "batches": "1" * 64,
        "losses": "1" * 64,
        "prev": "1" * 64,
        "step": leaves[index].step + 1,
        "index": index + 1,
        "update_norm": (leaves[index].update_norm or 0) + 1,
    }
    field = data.draw(st.sampled_from(sorted(changes)), label="field")
    forged.leaf(index, **{field: changes[field]})
    root = forged.write(tmp_path / "proof")

    def never(request: ReplayRequest) -> Replayed:
        raise AssertionError("there is nothing to replay")

    proof = folder.read(root)
    verdict = verifier.verify(proof, policy=AuditPolicy(), random=random.SystemRandom(), replay=never)
    shutil.rmtree(root)
    forged.leaves = leaves
    assert (verdict.verdict, verdict.deciding_rule) == ("rejected", "log-chain")


# -- of another class of hosts -----------------------------------------------------------------------------------------


def test_without_a_line_there_is_no_verdict_on_work_of_another_class(
    verify: Verify, forged: Forgery, tmp_path: Path
) -> None:
    root = rounded_elsewhere(forged, tmp_path / "proof")
    with pytest.raises(
        NotJudgeable, match=r"cpu: another one .*; here: .*Verify on a host of that class, or calibrate"
    ):
        verify(root)


def test_a_line_of_the_verifiers_own_is_said_to_be_his_own(verify: Verify, forged: Forgery, tmp_path: Path) -> None:
    root = rounded_elsewhere(forged, tmp_path / "proof")
    verdict = verify(root, line={"start": 1e-6, "error": 1e-3, "loss": 1e-4})
    assert verdict.verdict == "verified", verdict.reason
    assert "the line is the verifier's own" in verdict.reason
    verdict = verify(root, line={"start": 1e-6, "error": 1e-9, "loss": 1e-4})
    assert (verdict.verdict, verdict.deciding_rule) == ("rejected", "replay")


# -- what is shown before anything is replayed -------------------------------------------------------------------------


def test_a_claim_below_what_a_chunk_shows_is_a_lie_wherever_it_stands(
    verify: Verify, forged: Forgery, tmp_path: Path
) -> None:
    for leaf in (2, 3, 4, 5):
        forged.leaf(leaf, update_norm=1e-6)
    forged.rechain()
    verdict = verify(forged.write(tmp_path / "proof"), audit_segments=1, top_q=0)
    (claims,) = (rule for rule in verdict.rules if rule.rule == "leaf-claims")
    assert (verdict.verdict, verdict.deciding_rule) == ("rejected", "leaf-claims")
    assert (claims.value, claims.result) == (4.0, "fail")


def test_a_contract_that_describes_other_parameters_hides_nothing(
    verify: Verify, forged: Forgery, tmp_path: Path
) -> None:
    forged.terms(facts=forged.contract.facts.model_copy(update={"layout": ()}))
    forged.rechain()
    verdict = verify(forged.write(tmp_path / "proof"))
    assert (verdict.verdict, verdict.deciding_rule) == ("rejected", "opening")
    assert "describes other parameters" in verdict.reason


def test_what_gives_cause_for_doubt_is_replayed_besides_the_drawn_and_only_once(
    verify: Verify, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def doubt(seen: Evidence, opened: Mapping[int, Path]) -> Further:
        return Further(segments=frozenset({1, 2, 3, 4}))

    monkeypatch.setattr(doubts, "DOUBTS", (doubt,))
    verdict = verify(here(recorded / "proof", tmp_path), audit_segments=1, top_q=0)
    assert verdict.verdict == "verified"
    assert verdict.cost.segments_replayed == verdict.cost.opened_states - 1 == 6


def challenged(
    forged: Forgery, tmp_path: Path, *, audit_segments: int = 9, top_q: int = 1, ends: bool = True
) -> Forgery:
    """The folder that a platform would hand out, with more states than it had asked for."""
    contract, leaves = forged.contract, forged.leaves
    number = draw_chunk(contract, random.Random("c" * 64))
    assert number is not None
    forged.chunks = tmp_path / "answer"
    with forged.chunks.open("wb") as answer:
        for index in chunks.asked(contract, leaves):
            with forged.states[index].open("rb") as state:
                answer.write(chunks.show(state, b"".join(statefile.tree(state)), number))
    with forged.chunks.open("rb") as answer:
        measured = chunks.check(contract, leaves, number, answer)
    drawn = draw(
        contract, leaves, measured=measured, audit_segments=audit_segments, top_q=top_q, pev_percent=10,
        random=random.Random("d" * 64), ends=ends,
    )  # fmt: skip
    forged.origin, forged.weights = "platform", None
    forged.asked = Asked(
        chunk_nonce="c" * 64, chunk=number, nonce="d" * 64, audit_segments=audit_segments, top_q=top_q, pev_percent=10,
        ends=ends,
        indices=drawn.indices, segments=drawn.segments, evaluations=drawn.evaluations,
    )  # fmt: skip
    return forged


def test_what_a_platform_asked_for_is_drawn_again_and_its_chunks_are_measured(
    verify: Verify, forged: Forgery, tmp_path: Path
) -> None:
    verdict = verify(challenged(forged, tmp_path).write(tmp_path / "proof"))
    assert verdict.verdict == "verified"
    assert [rule.result for rule in verdict.rules if rule.rule == "leaf-claims"] == ["pass"]
    assert forged.asked is not None
    for changes in ({"nonce": "e" * 64}, {"segments": forged.asked.segments[1:]}, {"top_q": 0, "audit_segments": 1}):
        other = replace(forged, asked=forged.asked.model_copy(update=changes))
        with pytest.raises(Tampered, match=r"challenge\.json asks for other"):
            verify(other.write(tmp_path / f"with {next(iter(changes))}"))


def test_chunks_that_are_missing_or_not_the_committed_ones_are_not_believed(
    verify: Verify, forged: Forgery, tmp_path: Path
) -> None:
    honest = challenged(forged, tmp_path)
    assert honest.chunks is not None
    false = tmp_path / "false"
    plain = honest.chunks.read_bytes()
    false.write_bytes(bytes([plain[0] ^ 1]) + plain[1:])
    for number, chunks_ in enumerate((false, None)):
        verdict = verify(replace(honest, chunks=chunks_).write(tmp_path / f"proof {number}"))
        assert (verdict.verdict, verdict.deciding_rule) == ("rejected", "opening")
        assert verdict.cost.segments_replayed == 0
    false.write_bytes(plain[:-1])
    with pytest.raises(Tampered, match=r"chunks\.bin does not have the size"):
        verify(replace(honest, chunks=false).write(tmp_path / "short"))


# -- sources, policy, spans --------------------------------------------------------------------------------------------


def test_data_that_was_left_out_or_changed_is_named(recorded: Path, tmp_path: Path) -> None:
    proof = folder.read(recorded / "proof")
    data = Path(shutil.copytree(recorded / "job" / "data", tmp_path / "data"))
    (data / "more.bin").write_bytes(b"more")
    with pytest.raises(Tampered, match=r"more\.bin is not in the run's data"):
        sources.match(proof, None, data)
    (data / "more.bin").unlink()
    (data / "points.bin").write_bytes(bytes(80))
    with pytest.raises(Tampered, match=r"points\.bin differs"):
        sources.match(proof, None, data)


def test_a_verifiers_own_module_wins_over_the_proofs(recorded: Path, tmp_path: Path) -> None:
    proof = folder.read(recorded / "proof")
    job = Path(shutil.copytree(recorded / "job", tmp_path / "job"))
    assert sources.match(proof, job / "train.py", None).borrowed == ()
    (job / "net.py").write_text("def net(): ...")
    with pytest.raises(Tampered, match=r"net\.py"):
        sources.match(proof, job / "train.py", None)
    (job / "net.py").unlink()
    assert sources.match(proof, job / "train.py", None).borrowed == ("net.py",)


def test_data_that_a_proof_needs_is_asked_for(recorded: Path) -> None:
    with pytest.raises(UsageError, match="--data"):
        sources.match(folder.read(recorded / "proof"), None, None)


def test_data_is_found_where_people_have_it(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proof = folder.read(recorded / "proof")
    own = recorded / "job" / "data" / "points.bin"
    assert sources.match(proof, recorded / "job" / "train.py", None).contents["data/points.bin"] == own
    monkeypatch.chdir(recorded / "job")
    assert sources.match(proof, None, None).contents["data/points.bin"] == own
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "points.bin").write_bytes(b"other")
    with pytest.raises(UsageError, match="--data"):
        sources.match(proof, None, None)


def test_files_that_stand_in_each_others_way_are_refused(recorded: Path, tmp_path: Path) -> None:
    proof = folder.read(recorded / "proof")
    found = sources.match(proof, None, recorded / "job" / "data")
    clash = proof.files.code[0].model_copy(update={"path": "train.py/x.py"})
    files = proof.files.model_copy(update={"code": (*reversed(proof.files.code), clash)})
    contents = {**found.contents, "train.py/x.py": found.contents[proof.files.code[0].path]}
    with pytest.raises(MalformedInput, match="in the way"):
        sources.Sources("train.py", files, contents).fill(tmp_path)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"audit_segment": 3}, "did you mean 'audit_segments'"),
        ({"weights": {"replai": "informs"}}, "did you mean 'replay'"),
        ({"weights": {"replay": "maybe"}}, r"weights\.replay"),
        ({"audit_segments": 0}, "audit_segments"),
        ([], "JSON object"),
    ],
)
def test_a_policy_with_a_mistake_is_answered_with_the_right_spelling(document: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_policy(document)


def test_a_policy_may_not_let_a_run_pass_that_was_never_replayed(forged: Forgery, tmp_path: Path) -> None:
    forged.origin, forged.weights, forged.states = "platform", None, {}
    proof = folder.read(forged.write(tmp_path / "proof"))
    lax = parse_policy({"weights": {"replay": "informs", "log-chain": "informs"}})

    def never(request: ReplayRequest) -> Replayed:
        raise AssertionError("nothing was opened")

    verdict = verifier.verify(proof, policy=lax, random=random.SystemRandom(), replay=never)
    assert verdict.verdict == "rejected"


def test_a_stretch_begins_and_ends_at_leaves(recorded: Path) -> None:
    proof = folder.read(recorded / "proof")
    assert span.request(proof, span.span(proof, start=4, steps=1)).segments == (2,)
    whole = span.request(proof, span.span(proof, start=2, steps=8))
    assert (whole.segments, whole.compare, set(whole.digests)) == ((1, 2, 3, 4, 5), (5,), {1, 6})
    with pytest.raises(UsageError, match="no leaf at step 3; the nearest are at"):
        span.span(proof, start=3, steps=1)


def test_a_stretch_whose_first_state_was_not_kept_is_reached_from_the_one_before(recorded: Path) -> None:
    proof = folder.read(recorded / "proof")
    kept = proof.contract.model_copy(update={"keep_every": 2})
    entries = tuple(e for e in proof.manifest.files if e.path not in {f"states/{n}.safetensors" for n in (1, 3, 5)})
    proof = replace(proof, contract=kept, manifest=proof.manifest.model_copy(update={"files": entries}))
    stretch = span.span(proof, start=5, steps=1)
    assert (stretch.origin.step, stretch.start.step, stretch.stop.step) == (4, 5, 6)
    assert set(span.request(proof, stretch).digests) == {2, 4}


def test_a_stretch_that_could_not_be_replayed_is_an_error_that_says_why(recorded: Path) -> None:
    proof = folder.read(recorded / "proof")
    stretch = span.span(proof, start=4, steps=1)
    with pytest.raises(LabApexError, match="NameError"):
        span.measure(proof, stretch, ReplayReport(problem="NameError: x"))
    with pytest.raises(LabApexError, match="not the committed one"):
        span.measure(proof, stretch, ReplayReport(mismatched=(2,)))
