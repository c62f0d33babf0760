import shutil
import time

import pytest
from transformers import AutoTokenizer

from medcot.data.fast_tokenizer import load_fast_tokenizer
from medcot.data.prompts import render, render_answer
from medcot.data.tokenization import IGNORED, chat_template, check_labels, encode, encode_text
from medcot.errors import InputError, RunFailed
from medcot.records import Prompt, Turn
from tests.support.fakes import make_case


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def rows(tokenizer):
    chat = chat_template(tokenizer)
    cases = [make_case(number) for number in range(3)]
    return encode(tokenizer, {case.id: render(case, "chat", chat) for case in cases})


def labels_of(row):
    return row.as_row()["labels"]


def test_only_the_completion_is_trained_on(tokenizer, rows):
    trained = [label for label in labels_of(rows[1]) if label != IGNORED]
    text = tokenizer.decode(trained)
    assert text.startswith("Fever and cough in patient 1.")
    assert text.endswith("</think>\n\nMost likely infection number 1.<|im_end|>")
    assert "likely cause" not in text


def test_the_gate_passes_whole_completions(tokenizer, rows):
    check_labels(tokenizer, [labels_of(row) for row in rows], rows)


def test_the_gate_passes_rows_packed_end_to_end(tokenizer, rows):
    check_labels(tokenizer, [labels_of(rows[0]) + labels_of(rows[1])], rows)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda row: [IGNORED] * len(row), "no token"),
        (lambda row: labels_of(row)[:-1], "missing from the end"),
        (lambda row: row.as_row()["input_ids"], "not those of a completion"),
        (lambda row: row.prompt_ids + row.completion_ids[-3:], "</think> is missing"),
    ],
    ids=["nothing", "no EOS", "the prompt too", "a template that drops the thought"],
)
def test_the_gate_refuses(tokenizer, rows, spoil, problem):
    with pytest.raises(RunFailed, match=problem):
        check_labels(tokenizer, [spoil(rows[0])], rows)


def test_a_row_that_spells_the_end_token_is_refused(tokenizer):
    with pytest.raises(InputError, match="row bad"):
        encode(tokenizer, {"bad": Prompt("a", "b <|im_end|> c")})


def test_bos_stands_once_where_the_tokenizer_adds_one(tokenizer):
    class WithBos:
        bos_token_id = 1

        def __call__(self, text, add_special_tokens=True):
            plain = tokenizer(text, add_special_tokens=False)
            ids = plain.input_ids
            plain["input_ids"] = [1, *ids] if add_special_tokens else ids
            return plain

    assert encode_text(WithBos(), "hello")[0] == 1
    # The template wrote it already: it is not written again.
    assert encode_text(WithBos(), "<|im_start|>hello")[:2] != [1, 1]
    assert encode_text(tokenizer, "hello")[0] != 1


def test_pad_is_not_the_end_token(tokenizer):
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


TURN = "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{%- endfor %}"


def with_template(tiny_model, folder, text):
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").write_text(text)
    return folder


def test_a_template_that_says_the_time_always_says_the_same(tiny_model, tmp_path):
    text = "It is {{ strftime_now('%Y-%m-%d %H:%M:%S') }}.\n" + TURN
    folder = with_template(tiny_model, tmp_path / "dated", text)
    prompts = set()
    for tokenizer in (AutoTokenizer.from_pretrained(folder), load_fast_tokenizer(folder)):
        chat = chat_template(tokenizer)
        prompts.add(chat([Turn("user", "What now?")]))
        time.sleep(1.1)
        prompts.add(chat([Turn("user", "What now?")]))
    assert len(prompts) == 1


def test_a_template_that_drops_the_question_is_refused(tiny_model, tmp_path):
    text = (
        "{%- for m in messages %}{%- for part in m.content %}{{ part.text }}{%- endfor %}"
        "{%- endfor %}"
    )
    folder = with_template(tiny_model, tmp_path / "parts", text)
    chat = chat_template(AutoTokenizer.from_pretrained(folder))
    with pytest.raises(InputError, match=r"drops the question.*--style tutorial"):
        chat([Turn("user", "What now?")])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{{ raise_exception('A system message is required') }}", "A system message is required"),
        ("{% if %}", "Expected an expression"),
        ("{{ nope() }}", "'nope' is undefined"),
        ("{{ messages[9].content }}", "no element 9"),
        ("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", "steps"),
        ("{{ lipsum(n=10**6) }}", "'lipsum' is undefined"),
        ("{{ 'a' * 9999999999 }}", "beyond 1,000,000"),
        ("{{ 9 ** 9 ** 9 }}", "beyond 1,000,000"),
        ("{{ 'a' | center(9999999999) }}", "beyond 1,000,000"),
        ("{{ 'a'.ljust(9999999999) }}", "beyond 1,000,000"),
        ("{{ '%09999999999d' % 1 }}", "beyond 1,000,000"),
        ("{% for n in range(9999) %}{{ 'a' * 9999 }}{% endfor %}", "beyond 1,000,000"),
        (
            "{% set n = namespace(x='aa') %}{% for i in range(99) %}"
            "{% set n.x = n.x ~ n.x %}{% endfor %}",
            "beyond 1,000,000",
        ),
    ],
)
def test_a_template_that_fails_or_grows_is_refused_with_a_way_out(tiny_model, tmp_path, text, says):
    folder = with_template(tiny_model, tmp_path / "failing", text)
    for tokenizer in (AutoTokenizer.from_pretrained(folder), load_fast_tokenizer(folder)):
        with pytest.raises(InputError) as refusal:
            chat_template(tokenizer)([Turn("user", "What now?")])
        assert says in str(refusal.value)
        assert "--style tutorial" in str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        "{% generation %}" + TURN + "{% endgeneration %}",
        TURN + "{{ {'a': 'é<'} | tojson(indent=2) }}",
        TURN + "{% for n in [1, 2] %}{{ n }}{% break %}{% endfor %}{{ eos_token }}",
        TURN + "{{ 'x' * 3 ~ 2 ** 5 }}{{ '%s' % 4 }}{% if tools is none %}none{% endif %}",
    ],
)
def test_a_template_gives_the_prompt_that_transformers_gives(tiny_model, tmp_path, text):
    folder = with_template(tiny_model, tmp_path / "extended", text)
    real = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": "What now?"}]
    expected = real.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert chat_template(real)([Turn("user", "What now?")]) == expected
    assert chat_template(load_fast_tokenizer(folder))([Turn("user", "What now?")]) == expected


def test_a_template_may_fold_white_space(tiny_model, tmp_path):
    text = "{%- for m in messages %}{{ m.content | replace('\n', ' ') }}{%- endfor %}"
    folder = with_template(tiny_model, tmp_path / "folded", text)
    turn = Turn("user", "Well.\n\nWhat now?")
    assert "What now?" in chat_template(AutoTokenizer.from_pretrained(folder))([turn])


CONVERSATION = [
    Turn("system", "Be brief."), Turn("user", "Who?"), Turn("assistant", "You."),
    Turn("user", "What now?"),
]  # fmt: skip
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
ALL_TURNS = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
NO_SYSTEM = (
    "{% for m in messages if m.role != 'system' %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
)


@pytest.mark.parametrize("text", [ALL_TURNS, REFUSES + ALL_TURNS, NO_SYSTEM])
def test_a_system_prompt_is_kept_whatever_the_template_makes_of_it(tiny_model, tmp_path, text):
    folder = with_template(tiny_model, tmp_path / "system", text)
    found = chat_template(load_fast_tokenizer(folder))(CONVERSATION)
    rest = "[assistant] You.\n[user] What now?\n"
    inside = (
        "[system] Be brief.\n[user] Who?\n" if text is ALL_TURNS else "[user] Be brief.\n\nWho?\n"
    )
    assert found == inside + rest


def test_a_template_that_drops_a_turn_is_refused(tiny_model, tmp_path):
    folder = with_template(tiny_model, tmp_path / "last", "{{ messages[-1].content }}")
    with pytest.raises(InputError, match="drops a turn of the user"):
        chat_template(load_fast_tokenizer(folder))(CONVERSATION)


def test_a_template_that_can_is_told_that_no_thought_is_wanted(tiny_model, tmp_path):
    text = TURN + "{% if enable_thinking is defined and not enable_thinking %}<none>{% endif %}"
    chat = chat_template(load_fast_tokenizer(with_template(tiny_model, tmp_path / "q", text)))
    assert not chat(CONVERSATION[3:]).endswith("<none>")
    assert chat(CONVERSATION[3:], thinks=False).endswith("<none>")


def test_the_gate_knows_rows_without_thoughts(tokenizer):
    chat = chat_template(tokenizer)
    case = make_case(1, thought="")
    rows = encode(tokenizer, {"a": render(case, "chat", chat)})
    check_labels(tokenizer, [labels_of(row) for row in rows], rows)
    closed = encode(tokenizer, {"a": Prompt(render(case, "chat", chat).text, "So.</think>Yes.")})
    with pytest.raises(RunFailed, match="whose prompt opens no thought"):
        check_labels(tokenizer, [labels_of(row) for row in closed], closed)


def test_an_answer_after_a_thought_has_the_tokens_that_it_is_trained_with(tokenizer):
    case = make_case(1)
    pair = render(case, "chat", chat_template(tokenizer))
    alone = render_answer(case, pair, case.thought)
    trained, scored = (encode(tokenizer, {"a": one})[0] for one in (pair, alone))
    whole = trained.prompt_ids + trained.completion_ids
    assert scored.prompt_ids + scored.completion_ids == whole
    plain = encode(tokenizer, {"a": Prompt("", case.response)})[0]
    assert scored.completion_ids == plain.completion_ids
