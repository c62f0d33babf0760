"""The letter that an answer states: a table of outputs as models write them, in both languages."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcot.evaluation.answer_extraction import extract_letter, option_continuations
from medcot.records import Question

ENGLISH = {
    "A": "Neuroleptic malignant syndrome",
    "B": "Anticholinergic toxicity",
    "C": "Vitamin A deficiency",
    "D": "Serotonin syndrome",
    "E": "B cells",
}
CHINESE = {"A": "急性胰腺炎", "B": "B超", "C": "C反应蛋白", "D": "血清素综合征"}
YES_NO = {"A": "yes", "B": "no", "C": "maybe"}

TABLE_EN: list[tuple[str, str | None]] = [
    # labels
    ("Answer: B", "B"),
    ("Answer: B.", "B"),
    ("answer: d.", "D"),
    ("Answer: b", "B"),
    ("ANSWER: C", "C"),
    ("**Answer:** (D)", "D"),
    ("Answer: **D**", "D"),
    ("**Answer: D**", "D"),
    ("Final Answer: [D]", "D"),
    ("Answer: Option D", "D"),
    ("Answer = B", "B"),
    ("Answer:\nB", "B"),
    ("### Answer\nB", "B"),
    ("Answer: D (Serotonin syndrome)", "D"),
    ("Answer: D - Serotonin syndrome", "D"),
    ("Answer: D Serotonin syndrome", "D"),
    ("Answer: D. Serotonin syndrome\n\nOption A is incorrect because of clonus.", "D"),
    ("Answer:", None),
    ("Answer: F", None),
    ("Answer: AB", None),
    # boxes and bare letters
    ("\\boxed{B}", "B"),
    ("$\\boxed{\\text{C}}$", "C"),
    ("The answer is $\\boxed{D}$.", "D"),
    ("B", "B"),
    ("B.", "B"),
    ("B)", "B"),
    ("(B)", "B"),
    ("**B**", "B"),
    ("`B`", "B"),
    ("D. Serotonin syndrome", "D"),
    ("D) Serotonin syndrome", "D"),
    ("D: Serotonin syndrome fits best.", "D"),
    ("Clonus and fever fit.\n\nD", "D"),
    # prose
    ("The answer is C.", "C"),
    ("The correct answer is (D) Serotonin syndrome.", "D"),
    ("The best option here is therefore D.", "D"),
    ("So it must be D.", "D"),
    ("Therefore, D.", "D"),
    ("This leaves us with B.", "B"),
    ("I would choose option C.", "C"),
    ("I'd go with D.", "D"),
    ("Option D is correct.", "D"),
    ("D is the best answer.", "D"),
    ("The answer is D because of clonus, not A.", "D"),
    ("I first thought the answer was A; it is D.", "D"),
    ("The answer could be A, but the answer is D, because of clonus.", "D"),
    # not A but C
    ("The answer is not A but C.", "C"),
    ("The answer is not A, but rather C.", "C"),
    ("Answer: B, not A", "B"),
    ("The answer is not A.", None),
    ("Not A.", None),
    ("Not A but C.", "C"),
    ("It has clonus, so not A but rather D.", "D"),
    ("I would not choose A.", None),
    ("I don't think the answer is A.", None),
    ("Option A is not correct.", None),
    ("Is the answer A? No.", None),
    ("If the answer is A, then there is fever.", None),
    # explanations of the others after the answer
    ("Answer: D\n\nA. Neuroleptic malignant syndrome has no clonus.", "D"),
    (
        "The answer is D.\n\nA. Neuroleptic malignant syndrome: rigid.\n"
        "B. Anticholinergic toxicity: dry.\nC. Vitamin A deficiency: blind.",
        "D",
    ),
    ("A. Neuroleptic malignant syndrome is unlikely.", None),
    ("(D) Serotonin syndrome is the diagnosis.", "D"),
    ("- D", "D"),
    ("Ans: D", "D"),
    ("Answer - D", "D"),
    ("I'd say D.", "D"),
    ("I wouldn't say D.", None),
    ("The most likely diagnosis is option D, serotonin syndrome.", "D"),
    # two letters
    ("The answer is A or B.", None),
    ("Answer: A, B", None),
    ("Answer: A and D", None),
    ("Answer: A/B", None),
    ("A or B", None),
    ("Both A and B are correct.", None),
    # the last counts
    ("Answer: A\nOn reflection, the answer is D.", "D"),
    ("Answer: B\nAnswer: B\nAnswer: B", "B"),
    ("Answer: B\nFinal answer: something else", None),
    ("Answer: A. Wait. Answer: A or D", None),
    # letters that only occur
    ("Vitamin A deficiency causes this.", None),
    ("Hepatitis B is likely.", None),
    ("A patient with clonus has serotonin excess.", None),
    ("Answer: A patient with clonus", None),
    ("Answer: A-fib", None),
    ("A. fib with rapid response", None),
    ("A, B and C are wrong.", None),
    ("The options are A, B, C and D.", None),
    ("\n".join(f"{letter}. {text}" for letter, text in ENGLISH.items()), None),
    ("A\nB\nC\nD", None),
    # an option's own text
    ("Answer: Serotonin syndrome", "D"),
    ("The answer is serotonin syndrome.", "D"),
    ("Serotonin syndrome", "D"),
    ("The answer is vitamin A deficiency.", "C"),
    ("Answer: B cells", "E"),
    ("Serotonin syndrome, or perhaps anticholinergic toxicity.", None),
    ("Final answer: none of these", None),
    # nothing, thoughts, full width
    ("", None),
    ("   \n", None),
    ("I do not know.", None),
    ("<think>The answer is B", None),
    ("<think>Answer: B</think>\nClonus suggests toxicity.", None),
    ("Probably B</think>\nAnswer: C", "C"),
    ("<think>Answer: A</think>", None),
    ("Answer: Ｄ", "D"),
    ("Answer：Ａ", "A"),
    ("答案：B", "B"),
    # looping
    ("The patient has clonus. " * 60, None),
    ("Answer: A or B. " * 40, None),
]

TABLE_ZH: list[tuple[str, str | None]] = [
    ("答案：B", "B"),
    ("答案是B", "B"),
    ("答案是B。", "B"),
    ("答案为Ｂ", "B"),
    ("答案：（C）", "C"),
    ("答案：**D**", "D"),
    ("**答案：D**", "D"),
    ("最终答案：【D】", "D"),
    ("正确答案是A项。", "A"),
    ("本题答案选B。", "B"),
    ("故选D。", "D"),
    ("因此选择C。", "C"),
    ("我选C，因为脂肪酶升高。", "C"),
    ("选B不选A", "B"),
    ("不选A，选D", "D"),
    ("排除A和B，选D", "D"),
    ("答案不是A而是C", "C"),
    ("答案是D，不是A", "D"),
    ("答案是A。再想一想，答案应该是D。", "D"),
    ("选项D正确", "D"),
    ("D选项正确", "D"),
    ("D", "D"),
    ("D.血清素综合征", "D"),
    ("D、血清素综合征", "D"),
    ("答案：血清素综合征", "D"),
    ("答案是B超", "B"),
    ("选C反应蛋白", "C"),
    ("Answer: C", "C"),
    ("\\boxed{A}", "A"),
    ("A项不正确", None),
    ("不是A，而是C。", "C"),
    ("不是A，是C", "C"),
    ("我认为是B", "B"),
    ("正确的是B。", "B"),
    ("答案：D\n\nA.急性胰腺炎不符合，因为脂肪酶正常。", "D"),
    ("正确答案是D。\n\nA.急性胰腺炎：腹痛不符。\nB.B超：是检查。\nC.C反应蛋白：是指标。", "D"),
    ("应选A或B", None),
    ("答案：A、B", None),
    ("答案：以上都不是", None),
    ("首选B超检查", None),
    ("查C反应蛋白升高", None),
    ("维生素A缺乏", None),
    ("", None),
    ("<think>答案是A", None),
    ("<think>答案是A</think>需要进一步检查。", None),
    ("考虑胰腺炎。" * 80, None),
]


DRUGS = {
    "A": "Ibuprofen",
    "B": "Enoxaparin",
    "C": "Protamine sulfate",
    "D": "Vitamin K",
    "E": "Apixaban",
}
GERMS = {
    "A": "Streptococcus pyogenes",
    "B": "E. coli",
    "C": "Candida albicans",
    "D": "H. pylori",
    "E": "Enterococcus faecalis",
}
TEN = {
    "A": "Aspirin", "B": "Bisoprolol", "C": "Captopril", "D": "Digoxin", "E": "Enalapril",
    "F": "Furosemide", "G": "Glyceryl trinitrate", "H": "Hydralazine", "I": "Ivabradine",
    "J": "Isosorbide",
}  # fmt: skip
SIGNS = {"A": "低钾血症", "B": "高钾血症", "C": "低钠血症", "D": "高钙血症"}

WRAPPED: list[tuple[str, str | None]] = [
    # markup and data
    ("<answer>C</answer>", "C"),
    ("<answer> (C) </answer>", "C"),
    ("<answer>C. Protamine sulfate</answer>", "C"),
    ("<answer>Protamine sulfate</answer>", "C"),
    ("<answer>none of them</answer>", None),
    ("<final_answer>C</final_answer>", "C"),
    ("<Answer>\nC\n</Answer>", "C"),
    ("It reverses heparin.\n<answer>Option C</answer>", "C"),
    ("<answer>A or C</answer>", None),
    ('{"answer": "C"}', "C"),
    ('{"answer": "C. Protamine sulfate"}', "C"),
    ('{"answer": "Protamine sulfate"}', "C"),
    ('{"reason": "It binds heparin.", "final_answer": "C"}', "C"),
    ('{"answer": "C", "reason": "A is an analgesic."}', "C"),
    ("{'answer_letter': 'C'}", "C"),
    ('{"correct_option": "C"}', "C"),
    ('```json\n{"answer": "C"}\n```', "C"),
    ('{"answer": "unknown"}', None),
    ('{"answer": null}', None),
    ('{"options": ["A", "B"]}', None),
    # mathematics
    ("\\(\\boxed{D}\\)", "D"),
    ("\\[\\boxed{D}\\]", "D"),
    ("$$\\boxed{\\text{D}}$$", "D"),
    ("\\boxed{\\textbf{(D)}}", "D"),
    ("\\boxed{\\mathrm{D}}", "D"),
    ("\\boxed{D. Vitamin K}", "D"),
    ("\\boxed{\\text{D. Vitamin K}}", "D"),
    ("\\boxed{\\text{Vitamin K}}", "D"),
    ("\\boxed{Vitamin K}", "D"),
    ("\\boxed{Vitamin D}", None),
    ("The final answer is: \\(\\boxed{D}\\).", "D"),
    ("\\boxed{A, D}", None),
    # the letter as the whole answer
    ("d", "D"),
    ("d.", "D"),
    ("(d)", "D"),
    ("[d]", "D"),
    ("d)", "D"),
    ("[D]", "D"),
    ('"D"', "D"),
    ("f", None),
    ("a patient", None),
    ("Ⓓ", "D"),
    # labels
    ("Correct Option: B", "B"),
    ("Correct option - B", "B"),
    ("Correct answer: B. Enoxaparin", "B"),
    ("Best option: B", "B"),
    ("The correct choice: B", "B"),
    ("Final option: B", "B"),
    ("**Correct Answer:** B) Enoxaparin", "B"),
    ("Answer: the option B", "B"),
    ("Correct option: B or D", None),
    ("Answer: B(Enoxaparin)", "B"),
    # prose
    ("The most appropriate treatment is (C) Protamine sulfate.", "C"),
    ("The most appropriate next step would be C.", "C"),
    ("The best initial drug is therefore (C).", "C"),
    ("The most likely cause is protamine sulfate.", "C"),
    ("The most appropriate treatment is not C.", None),
    ("The preferred antidote is option C.", "C"),
    ("Protamine sulfate is the correct answer.", "C"),
    ("Protamine sulfate is the most appropriate choice here.", "C"),
    ("I think vitamin K would be the best option.", "D"),
    ("Vitamin K is not the correct answer.", None),
    ("I doubt that vitamin K is the correct answer.", None),
    ("Between C and D, D is more appropriate.", "D"),
    ("Between C and D, option D is the better choice.", "D"),
    ("Of the two, D is better.", "D"),
    ("It could be C or D, but D is more likely.", "D"),
    ("It might be D, however C is more appropriate.", "C"),
    ("Correct: C", "C"),
    ("Answer key: C", "C"),
    ("I'd rule out A and B. That leaves C.", "C"),
    ("The patient should not take A. Enoxaparin is the right choice.", "B"),
    ("A: wrong. B: wrong. C: right.", None),
    ("C is more likely to cause hypotension than D.", None),
    ("Between C and D it is hard to decide.", None),
    # what is denied states nothing
    ("Answer: C. It is the antidote, so A is wrong.", "C"),
    ("Answer: C. Thus B can be ruled out.", "C"),
    ("Answer: C. Therefore A, B and D are incorrect.", "C"),
    ("Answer: C\n\nSo A isn't right and D cannot be used.", "C"),
    ("So B is wrong.", None),
    ("Therefore A would be incorrect.", None),
    ("Hence D must be excluded.", None),
    ("Thus A, B and D can be eliminated.", None),
    ("This is A, which is not asked.", "A"),
]

ABBREVIATED: list[tuple[str, str | None]] = [
    ("Answer: E. coli", "B"),
    ("It is E. coli.", "B"),
    ("**Answer: E. coli**", "B"),
    ("Answer: E. coli is the usual cause.", None),
    ("The answer is B. Most come from E. coli, so E. coli it is.", "B"),
    ("Answer: H. pylori", "D"),
    ("\\boxed{E. coli}", "B"),
    ("Answer: C. difficile", None),
    ("This is C. difficile colitis, so give fluids.", None),
    ("Answer: A. baumannii", None),
    ("Answer: E. Enterococcus faecalis", "E"),
    ("Answer: E. enterococcus faecalis", "E"),
    ("Answer: C. candida albicans", "C"),
    ("Answer: E. It grows in bile.", "E"),
    ("Answer: E. because it grows in bile", "E"),
]

PRONOUNS: list[tuple[str, str | None]] = [
    ("Answer: C. So I would start it today.", "C"),
    ("Answer: C\n\nThus I would not wait.", "C"),
    ("So I would give captopril.", None),
    ("Therefore I choose C.", "C"),
    ("Answer: I", "I"),
    ("Answer: I. Ivabradine", "I"),
    ("The answer is I.", "I"),
    ("So I.", "I"),
    ("Answer: (I)", "I"),
    ("Answer: J", "J"),
    ("I would go with J.", "J"),
    ("I", "I"),
    ("i", "I"),
]

CHINESE_FORMS: list[tuple[str, str | None]] = [
    ("【答案】B", "B"),
    ("【正确答案】Ｂ", "B"),
    ("【答案】B【解析】血钾升高。", "B"),
    ("[答案] B", "B"),
    ("答案为选项B。", "B"),
    ("答案选择B。", "B"),
    ("正确答案是选项 B（高钾血症）", "B"),
    ("正确答案为：B. 高钾血症", "B"),
    ("答案：B（A、C、D均不符合）", "B"),
    ("答案：B，A错误。", "B"),
    ("正确选项为B", "B"),
    ("综上，选B。", "B"),
    ("综上所述，答案就是B。", "B"),
    ("因此，B选项最符合。", "B"),
    ("高钾血症是正确的。", "B"),
    ("高钾血症不是正确答案。", None),
    ("<answer>B</answer>", "B"),
    ('{"答案": "B"}', "B"),
    ('{"answer": "高钾血症"}', "B"),
    ("\\boxed{高钾血症}", "B"),
    ("\\(\\boxed{B}\\)", "B"),
    ("答案：Ｂ。\n\n所以A不对。", "B"),
    ("答案：B。因此A、C、D可以排除。", "B"),
    ("所以A不对。", None),
    ("因此A错误。", None),
    ("所以C、D均不正确。", None),
    ("可以排除A。", None),
    ("A错，B对。", "B"),
    ("首先排除A、C，剩下B和D。", None),
    ("选A是错误的，应选B", "B"),
    ("A和B都有可能。", None),
    ("b", "B"),
    ("（b）", "B"),
    ("最可能的诊断是B。", "B"),
]


@pytest.mark.parametrize(("output", "letter"), WRAPPED)
def test_wrappers_labels_and_prose(output: str, letter: str | None) -> None:
    assert extract_letter(output, DRUGS, "en") == letter


@pytest.mark.parametrize(("output", "letter"), ABBREVIATED)
def test_an_abbreviated_name_is_no_letter(output: str, letter: str | None) -> None:
    assert extract_letter(output, GERMS, "en") == letter


@pytest.mark.parametrize(("output", "letter"), PRONOUNS)
def test_the_pronoun_is_no_letter(output: str, letter: str | None) -> None:
    assert extract_letter(output, TEN, "en") == letter


@pytest.mark.parametrize(("output", "letter"), CHINESE_FORMS)
def test_chinese_forms(output: str, letter: str | None) -> None:
    assert extract_letter(output, SIGNS, "zh") == letter


@pytest.mark.parametrize(("output", "letter"), TABLE_EN)
def test_english_outputs(output: str, letter: str | None) -> None:
    assert extract_letter(output, ENGLISH, "en") == letter


@pytest.mark.parametrize(("output", "letter"), TABLE_ZH)
def test_chinese_outputs(output: str, letter: str | None) -> None:
    assert extract_letter(output, CHINESE, "zh") == letter


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        ("Answer: yes", "A"),
        ("The answer is no.", "B"),
        ("maybe", "C"),
        ("No, because of bias", None),
    ],
)
def test_words_as_options(output: str, letter: str | None) -> None:
    assert extract_letter(output, YES_NO, "en") == letter


def test_options_with_one_text_are_not_told_apart_by_it() -> None:
    assert extract_letter("Answer: rest", {"A": "rest", "B": "Rest"}, "en") is None


@given(st.text(alphabet="ABCDEabd 是选答案不:：.()（）\nnotbuswer*", max_size=60))
def test_only_an_offered_letter_is_ever_given(text: str) -> None:
    options: Mapping[str, str] = {"A": "one", "B": "two"}
    for language in ("en", "zh"):
        assert extract_letter(text, options, language) in {"A", "B", None}


@pytest.mark.parametrize(
    "unit", ["Answer: ", "The answer ", "( ", "选", "A or ", "B\n", "answer is not A but "]
)
def test_a_long_loop_is_read_in_no_time(unit: str) -> None:
    started = time.process_time()
    extract_letter(unit * (8_000 // len(unit)), ENGLISH, "en")
    extract_letter(unit * (8_000 // len(unit)), CHINESE, "zh")
    assert time.process_time() - started < 10


def test_english_letters_follow_a_space_and_chinese_ones_do_not() -> None:
    assert option_continuations(Question("1", "?", {"A": "x", "B": "y"}, "A")) == [" A", " B"]
    assert option_continuations(Question("1", "？", {"A": "x", "B": "y"}, "A", "zh")) == ["A", "B"]


@pytest.mark.parametrize("part", ["So ", "\n", "Answer: B ", "选", "\\boxed{", "(", "is not A, "])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_an_answer_that_repeats_itself_without_end_is_read_in_seconds(part, language):
    options = {"A": "Iron", "B": "Zinc"}
    begun = time.process_time()
    letter = extract_letter(f"{part * 100_000}\nAnswer: A", options, language)
    assert letter in ("A", None)
    assert time.process_time() - begun < 5
