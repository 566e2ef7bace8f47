"""One example of each body of the API, as the models themselves write it, so that none can be of another shape."""

from __future__ import annotations

import base64
from decimal import Decimal
from typing import Any
from uuid import UUID

from labapex.certificate import CertificateBundle, Envelope, PlatformKeys, RevocationStatus, Signature
from labapex.protocol.api import (
    AlertChannels,
    AlertChoice,
    Deposit,
    DepositChoice,
    DeviceCode,
    DevicePoll,
    EnrolmentCode,
    Entry,
    Events,
    JobPage,
    JobRequest,
    JobView,
    Login,
    Me,
    NewToken,
    Offer,
    OfferPage,
    Progress,
    Scope,
    Statement,
    Storage,
    TokenPage,
    TokenTerms,
    TokenView,
)
from labapex.protocol.canonical import Message
from labapex.protocol.hours import Hours
from labapex.protocol.records import Console, Sample
from labapex.protocol.ruling import (
    DisputePage,
    DisputeRequest,
    DisputeTerms,
    DisputeView,
    FalseSegment,
    Outcome,
    Ruling,
    Side,
    SignedRuling,
)
from labapex.protocol.spec import Bundle, JobSpec, Part
from labapex.protocol.states import Fault, JobState
from labapex.protocol.verdict import Cost, Origin, Receipt, RuleResult, SignedVerdict, Verdict, Weight
from labapex.transparency import Consistency, Entries, Head, Inclusion
from labapex_server.api.receipts import PublicKey

_JOB = UUID("4635f120-5b1c-4d0e-9a36-0d5f1d1a7c11")
_AT = 1_790_000_000.0
_SCRIPT = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_DATA = "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752"
_SECRET = "apex_" + "0" * 46  # no token: its checksum is wrong
_NOTE = "apex.example.org/log\n2\nq8BcFZqzg2E9Lx2TR0f0oa2dhtqHuBKSoRz5l4+VNRo=\n\n— apex.example.org/log Az3grlg…\n"

_spec = JobSpec.model_validate(
    {
        "name": "digits",
        "script": "train.py",
        "args": ["--epochs", "{epochs}"],
        "data": "data",
        "epochs": 3,
        "checkpoint_every": 5,
        "budget": "10",
    }
)
_job = JobView(
    id=_JOB,
    name="digits",
    state=JobState.RUNNING,
    reason="",
    fault=None,
    spec=_spec,
    created_at=_AT,
    started_at=_AT + 12,
    ended_at=None,
    progress=Progress(iterations=15, total=69, epoch=1, eta_seconds=18.0),
    iterations_per_epoch=23,
    budget=10_000_000,
    cost=0,
    paid=0,
    refunded=0,
    worker="my-machine",
    device="cpu: AMD EPYC",
    lost_contact=False,
    package_ms=1.2,
    first_loss_seconds=13.1,
    verdict=None,
    url=f"https://apex.example.org/jobs/{_JOB}/",
)
_token = TokenView(
    id=7,
    name="laptop",
    prefix="apex_4fGh",
    scopes=(Scope.JOBS_READ, Scope.JOBS_WRITE),
    created_at=_AT,
    last_used_at=_AT + 60,
    expires_at=_AT + 90 * 86_400,
)
_verdict = Verdict(
    job=_JOB,
    lease=UUID("9d0f1c1e-2f0a-4b47-8f0d-5a3f6f0c7b22"),
    verdict="verified",
    deciding_rule=None,
    reason="every deciding rule passed; every replayed segment was reproduced",
    fault=Fault.NOBODY,
    epochs=3,
    iterations_per_epoch=23,
    loss_logs=69,
    verified_epochs=3,
    rules=(RuleResult(rule="replay", value=0.0, limit=0.0, result="pass", weight=Weight.DECIDES),),
    replay_max_error=0.0,
    detection="a share of 10 % false segments is caught with 99 %",
    origin=Origin(tensors=4, unproven=0, success=1.0, formula="1 (all 16 segments)"),
    contract=_SCRIPT,
    proof_root=_DATA,
    weights=_DATA,
    worker_environment=None,
    verifier_environment=None,
    cost=Cost(
        verify_seconds=4.4,
        train_seconds=5.9,
        opened_bytes=28_966_400,
        all_checkpoint_bytes=41_152_144,
        opened_states=12,
        segments_replayed=10,
    ),
    issued_at=_AT + 60,
)
_dispute = DisputeView(
    id=UUID("7c1f7e55-8e0c-4c39-9a8d-2f8c1d1f6f44"),
    job=_JOB,
    name="digits",
    side=Side.WORKER,
    reason="Every state was shown as it was.",
    state="ruled",
    contested=_SCRIPT,
    rule="replay",
    stake=1_677,
    executed=2,
    segments=15,
    opened_at=_AT + 3600,
    ruled_at=_AT + 3660,
    ruling=SignedRuling(
        ruling=Ruling(
            dispute=UUID("7c1f7e55-8e0c-4c39-9a8d-2f8c1d1f6f44"),
            job=_JOB,
            lease=_verdict.lease,
            side=Side.WORKER,
            contested=_SCRIPT,
            outcome=Outcome.UPHELD,
            because="iterations 20 to 24 were run again, twice, and came out otherwise than they were committed",
            false=FalseSegment(
                segment=4, start=20, stop=25, agreed=_SCRIPT, committed=_DATA, recomputed=_SCRIPT, origin=20
            ),
            rules=_verdict.rules,
            blamed=_verdict.lease,
            segments_executed=2,
            segments=15,
            seconds=0.4,
            worker_environment=None,
            verifier_environment=None,
            verdict=None,
            revoked=None,
            stake=1_677,
            charged=112,
            moved=(),
            issued_at=_AT + 3660,
        ),
        key_id="0f1e2d3c4b5a6978",
        signature=bytes(64),
    ),
    again=f"labapex pull {_JOB} --proof proof && labapex replay proof --from 20 --steps 5",
    url="https://apex.example.org/disputes/7c1f7e55-8e0c-4c39-9a8d-2f8c1d1f6f44/",
)
_BODIES: tuple[Message, ...] = (
    Login(username="ada", password="correct horse battery", name="laptop", scopes=(Scope.JOBS_READ,)),  # noqa: S106
    NewToken(token=_SECRET, username="ada", scopes=_token.scopes, expires_at=_AT + 90 * 86_400),
    TokenTerms(name="laptop", organisation="acme", scopes=(Scope.JOBS_READ, Scope.JOBS_WRITE)),
    DeviceCode(
        device_code="GmRhmhcxhwAzkoEqiMEg_DnyEysNkuNhszIySk9eS",
        user_code="WDJB-MJHT",
        verification_uri="https://apex.example.org/device/",
        verification_uri_complete="https://apex.example.org/device/?code=WDJB-MJHT",
        expires_in=600,
        interval=5,
    ),
    DevicePoll(device_code="GmRhmhcxhwAzkoEqiMEg_DnyEysNkuNhszIySk9eS"),
    Me(username="ada", available=990_000_000, held=10_000_000, spent=0, token=_token),
    TokenPage(results=(_token,), next=None),
    Statement(
        month="2026-09",
        opening=0,
        closing=1_000_000_000,
        results=(
            Entry(
                id=UUID("0c7d8bb2-2f61-4a36-8a6e-f2d1c3c55a10"),
                at=_AT,
                status="posted",
                amount=1_000_000_000,
                job=None,
                memo="",
            ),
        ),
        next=None,
    ),
    OfferPage(
        results=(
            Offer(
                id=UUID("5b0f2c1a-9a4e-4a57-8a39-1f0f0f6f0d33"),
                name="my-machine",
                device="cuda: NVIDIA H200",
                devices=1,
                memory=150_754_820_096,
                room=None,
                hours=(Hours(begin=22 * 60, end=7 * 60),),
                price_per_hour=2_000_000,
                speed=410_000.0,
                deposit=25_000_000,
                reputation=95,
                record="trusted: 17 verified in a row; 1 lost",
                verified=17,
                reliability=0.944,
                free=True,
            ),
        ),
        next=None,
        total=1,
        free=1,
        lacking=None,
    ),
    JobRequest(
        spec=_spec,
        bundle=Bundle(
            code=(Part(path="train.py", digest=_SCRIPT, size=4096),),
            data=(Part(path="data/digits.npz", digest=_DATA, size=1_048_576),),
        ),
    ),
    _job,
    JobPage(results=(_job,), next=None),
    Storage(
        files=12,
        files_bytes=1_048_576_000,
        unfinished_bytes=0,
        states_bytes=27_648_000,
        weights_bytes=2_304_000,
        limit_bytes=50 * 2**30,
        files_days=30,
        states_days=30,
        results_days=365,
    ),
    Events(
        cursor=f"{_JOB}:15:4",
        restarted=False,
        job=_job,
        first=13,
        losses=(0.8112, 0.7951),
        samples=(
            Sample(at=_AT + 20, source="cpu", device="AMD EPYC", utilisation=40.0, memory=2**30, memory_total=2**34),
        ),
        console=(Console(stream="stdout", text="epoch 1\n"),),
        rules=(),
    ),
    SignedVerdict(verdict=_verdict, key_id="0f1e2d3c4b5a6978", signature=bytes(64)),
    Receipt(
        job=_JOB,
        held=10_000_000,
        paid=1_677,
        refunded=9_998_323,
        price_per_epoch=559,
        verified_epochs=3,
        reason="paid for 3 verified epochs",
    ),
    AlertChoice(mail=True, webhook="https://ops.example.org/labapex", budget_share=80),
    AlertChannels(mail=True, webhook="https://ops.example.org/labapex", address="ada@example.org"),
    DepositChoice(credits=Decimal(25)),
    Deposit(worker=UUID("5b0f2c1a-9a4e-4a57-8a39-1f0f0f6f0d33"), amount=25_000_000, bound=None),
    EnrolmentCode(
        code="5f2d0c8e9b7a4d3186e0c1f2a3b4c5d6",
        expires_at=_AT + 900,
        root="3d6f-0a51-9c2e-77b4-e81d-46f0-b5a9-120c",
    ),
    DisputeRequest(job=_JOB, reason="Every state was shown as it was."),
    DisputeTerms(job=_JOB, side=Side.WORKER, stake=1_677, until=_AT + 14 * 86_400, obstacle=None),
    _dispute,
    DisputePage(results=(_dispute,), next=None),
    RevocationStatus(certificate=_DATA, revoked=None),
    PublicKey(key_id="0f1e2d3c4b5a6978", public_key=base64.b64encode(bytes(32)).decode()),
    PlatformKeys(verdict=bytes(32), log=bytes(range(32))),
    Head(checkpoint=_NOTE),
    Entries(first=0, entries=("eyJwYXlsb2FkVHlwZSI6Li4ufQ==",)),
    Inclusion(index=0, size=2, hashes=(_DATA,)),
    Consistency(first=1, second=2, hashes=(_DATA,)),
    CertificateBundle(
        envelope=Envelope(
            payload="eyJfdHlwZSI6Li4ufQ==", signatures=(Signature(keyid="0f1e2d3c4b5a6978", sig="AAAA"),)
        ),
        inclusion=Inclusion(index=0, size=2, hashes=(_DATA,)),
        checkpoint=_NOTE,
    ),
)
EXAMPLES: dict[str, Any] = {type(body).__name__: body.model_dump(mode="json") for body in _BODIES}
"""By the name of the model."""
