"""The claim check on the bundled question: what states it, what contradicts it, what is silent."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from medcot.errors import RunFailed
from medcot.evaluation import rubric
from medcot.evaluation.rubric import check_claims, states_all
from medcot.records import Claim

S, C, N = "states", "contradicts", "silent"


def claims_of(question: str) -> list[Claim]:
    text = (
        files("medcot.data").joinpath("samples/fixed_questions.jsonl").read_text(encoding="utf-8")
    )
    rows = {row["id"]: row for row in map(json.loads, text.splitlines())}
    return [
        Claim(claim["text"], tuple(claim["states"]), tuple(claim["contradicts"]))
        for claim in rows[question]["claims"]
    ]


def findings(answer: str, question: str = "fixed-en") -> list[str]:
    return [one.finding for one in check_claims(answer, claims_of(question))]


ENGLISH = [
    # (answer, residual volume is normal, no involuntary detrusor contractions)
    ("Cystometry would show increased residual volume and increased detrusor contractions.", C, C),
    (
        "Cystometry in this patient would most likely reveal an increased residual volume,"
        " suggesting incomplete emptying, and increased detrusor contractions, indicating an"
        " overactive bladder.",
        C,
        C,
    ),
    ("Normal post-void residual volume; no involuntary detrusor contractions.", S, S),
    (
        "The residual volume would be normal, since she empties her bladder, and there would be no"
        " detrusor overactivity during filling.",
        S,
        S,
    ),
    ("Her post-void residual is expected to be within normal limits.", S, N),
    ("The residual urine volume is not increased. The detrusor is stable.", S, S),
    ("Residual volume: normal. Detrusor contractions: absent.", S, S),
    ("There is no significant residual volume and no uninhibited contractions.", S, S),
    ("A low residual volume without involuntary detrusor contractions.", S, S),
    ("Residual volume and detrusor contractions would both be normal.", S, S),
    ("Both the residual volume and the detrusor contractions would be increased.", C, C),
    ("Cystometry would not show detrusor overactivity.", N, S),
    ("Cystometry shows normal residual volume but involuntary detrusor contractions.", S, C),
    ("It shows an elevated residual volume with normal detrusor function.", C, S),
    ("The residual volume is not normal.", C, N),
    ("Detrusor contractions would not be increased.", N, S),
    ("The detrusor muscle is overactive.", N, C),
    ("Involuntary detrusor contractions are present.", N, C),
    ("Involuntary detrusor contractions are absent.", N, S),
    ("There would be neither an increased residual volume nor detrusor overactivity.", S, S),
    (
        "The residual volume is normal rather than increased, and the detrusor does not contract"
        " involuntarily as opposed to an overactive detrusor.",
        S,
        S,
    ),
    (
        "Unlike overflow incontinence, which shows an increased residual volume, hers is a normal"
        " residual volume without detrusor contractions.",
        S,
        S,
    ),
    (
        "A high residual volume would suggest overflow, and involuntary detrusor contractions would"
        " indicate urge incontinence. Here the residual volume is normal and there are no"
        " involuntary detrusor contractions.",
        S,
        S,
    ),
    ("It would rule out detrusor overactivity; ruling out detrusor overactivity is its use.", N, S),
    ("Stress incontinence is due to urethral hypermobility; do pelvic floor exercises.", N, N),
    ("She should see a urologist about her residual symptoms.", N, N),
    ("", N, N),
    ("NORMAL RESIDUAL VOLUME\n\nNO DETRUSOR CONTRACTIONS", S, S),
    ("She has a **normal** residual volume and *no* involuntary detrusor contractions.", S, S),
    ("膀胱测压显示残余尿量正常，无逼尿肌不自主收缩。", S, S),
    ("PVR: normal. No involuntary detrusor contractions.", S, S),
    ("A low PVR, and a stable detrusor.", S, S),
    ("PVR: increased.", C, N),
    ("An elevated PVR is expected.", C, N),
    ("PVR is not increased.", S, N),
    ("The bladder empties completely and the detrusor is stable.", S, S),
    ("Complete bladder emptying is expected.", S, N),
    ("Her bladder does not empty completely.", C, N),
    ("Incomplete bladder emptying with an overactive detrusor.", C, C),
    ("The bladder cannot empty fully.", C, N),
]

CHINESE = [
    ("残余尿量正常；无逼尿肌不自主收缩。", S, S),
    ("膀胱测压最可能显示残余尿量正常，且没有逼尿肌不自主收缩。", S, S),
    ("残余尿量增加，逼尿肌收缩增强。", C, C),
    ("残余尿量增多，并可见逼尿肌不自主收缩。", C, C),
    ("残余尿量没有增加，逼尿肌稳定。", S, S),
    ("残余尿不多，未见逼尿肌过度活动。", S, S),
    ("残余尿量不正常。", C, N),
    ("储尿期逼尿肌没有不自主收缩。", N, S),
    ("逼尿肌过度活动，残余尿量正常。", S, C),
    ("残余尿量正常而不是增多，逼尿肌功能正常。", S, S),
    ("无残余尿，逼尿肌收缩正常。", S, S),
    ("残余体积正常，逼尿肌稳定", S, S),
    ("残余体积增加。", C, N),
    ("残尿不多，逼尿肌稳定。", S, S),
    ("膀胱能完全排空，未见逼尿肌过度活动。", S, S),
    ("膀胱不能完全排空。", C, N),
    ("膀胱排空不全，残余量增多。", C, N),
    ("这是压力性尿失禁，建议盆底肌训练。", N, N),
    ("", N, N),
]


@pytest.mark.parametrize(("answer", "residual", "detrusor"), ENGLISH)
def test_english_answers_are_read_claim_by_claim(answer: str, residual: str, detrusor: str) -> None:
    assert findings(answer) == [residual, detrusor]


@pytest.mark.parametrize(("answer", "residual", "detrusor"), CHINESE)
def test_chinese_answers_are_read_claim_by_claim(answer: str, residual: str, detrusor: str) -> None:
    assert findings(answer, "fixed-zh") == [residual, detrusor]


def test_the_wrong_answer_that_reads_well_fails() -> None:
    wrong = "increased residual volume and increased detrusor contractions"
    assert not states_all(check_claims(wrong, claims_of("fixed-en")))


@pytest.mark.parametrize("question", ["fixed-en", "fixed-zh"])
def test_the_reference_and_the_bundled_response_pass(question: str) -> None:
    text = (
        files("medcot.data").joinpath("samples/fixed_questions.jsonl").read_text(encoding="utf-8")
    )
    row = next(row for row in map(json.loads, text.splitlines()) if row["id"] == question)
    for answer in (row["reference"], row["Response"]):
        assert states_all(check_claims(answer, claims_of(question))), answer


def test_an_answer_silent_on_one_claim_does_not_pass() -> None:
    assert not states_all(check_claims("The residual volume is normal.", claims_of("fixed-en")))


def test_an_answer_that_says_both_fails() -> None:
    both = "The residual volume is normal. Later: the residual volume is increased."
    assert findings(both)[0] == C


def test_no_claims_is_not_a_pass() -> None:
    assert not states_all(check_claims("anything", []))


def test_a_pattern_that_never_ends_fails_with_its_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rubric, "LIMIT_S", 0.1)
    claim = Claim("It is benign.", (r"(x|xx)+y",), ())
    with pytest.raises(RunFailed, match=r"'It is benign\.' takes over"):
        rubric.check_claims("x" * 5000, [claim])
