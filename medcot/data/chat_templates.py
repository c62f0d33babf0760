"""Renders a model's own chat template, the same for planning, training and asking.

A template is a program that came with the model. It runs in Jinja's sandbox, with the functions
and extensions that transformers gives to templates, and within bounds: no text or number that it
makes may be huge.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any, cast

from jinja2 import TemplateError, ext, nodes, pass_context, pass_eval_context
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from medcot.errors import InputError, one_line
from medcot.records import Turn

TEMPLATE_TIME = datetime(2026, 1, 1, 12)
"""What a chat template that says the date is told. With today's date, prompts of before and after,
or of a run and its repetition, would differ."""

LONGEST = 1_000_000
"""Characters of any text in a template, and the largest number; prompts have some thousands."""

MOST_STEPS = 100_000
"""Passes through all loops of a template together; a prompt takes some dozens."""

_STEPS = "medcot_steps"
"""The filter of every loop, and the variable that holds how many steps are left."""

_WIDTH = re.compile(r"\d{6,}")


def render_user_turn(template: str, message: str, special: Mapping[str, Any]) -> str:
    """Return the prompt of a user's ``message``, with the assistant's turn opened.

    ``special`` holds the names and texts of the tokenizer's special tokens.

    Raises:
        InputError: the template does not parse, refuses, fails, or drops the message.
    """
    return render_turns(template, [{"role": "user", "content": message}], special)


def render_turns(
    template: str, turns: Sequence[Mapping[str, str]], special: Mapping[str, Any], **options: Any
) -> str:
    """Return the prompt of several turns, the last one the user's, as :func:`render_user_turn`.

    ``options`` are further variables of the template, such as ``enable_thinking``.
    """
    values = {"tools": None, "documents": None, **special, **options, "add_generation_prompt": True}
    try:
        prompt = _compiled(template).render(
            messages=list(turns), **values, **{_STEPS: [MOST_STEPS]}
        )
    except Exception as error:
        raise _refusal(f"fails ({_describe(error)})") from error
    if _without_space(turns[-1]["content"]) not in _without_space(prompt):
        raise _refusal("drops the question")
    return prompt


def render_conversation(
    template: str, turns: Sequence[Turn], special: Mapping[str, Any], *, thinks: bool | None = None
) -> str:
    """Return the prompt of a conversation of which no turn may be lost.

    Where the template has no place for a system prompt, it is put before the first message of the
    user, as the makers of such models advise. Templates that know ``enable_thinking`` are told
    whether a thought is wanted, unless ``thinks`` is None.

    Raises:
        InputError: the template does not parse, refuses, fails, or drops a turn.
    """
    options: dict[str, Any] = {} if thinks is None else {"enable_thinking": thinks}
    told = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        return _render_whole(template, told, special, options)
    except InputError:
        if told[0]["role"] != "system" or len(told) < 2:
            raise
    system, first, *rest = told
    first = {"role": "user", "content": f"{system['content']}\n\n{first['content']}"}
    return _render_whole(template, [first, *rest], special, options)


def _render_whole(
    template: str,
    turns: Sequence[Mapping[str, str]],
    special: Mapping[str, Any],
    options: Mapping[str, Any],
) -> str:
    prompt = render_turns(template, turns, special, **options)
    if len(turns) > 1:
        written = _without_space(prompt)
        for turn in turns:
            if _without_space(turn["content"]) not in written:
                raise _refusal(f"drops a turn of the {turn['role']}")
    return prompt


def choose_template(templates: Any) -> str:
    """Return the template for a plain chat among a tokenizer's, or "" where it has none.

    A tokenizer has one text, or several by name: as a mapping, or as a list of objects.
    """
    found = templates
    if isinstance(templates, list):
        named = filter(_is_object, cast("list[Any]", templates))
        found = {str(one.get("name")): one.get("template") for one in named}
    if isinstance(found, dict):
        found = cast("dict[str, Any]", found).get("default")
    return found if isinstance(found, str) else ""


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _refusal(problem: str) -> InputError:
    needs = "use --style tutorial, which needs no chat template"
    return InputError("--model", f"its chat template {problem}", needs)


def _describe(error: Exception) -> str:
    """Return what a template says when it refuses, or what went wrong in it."""
    if type(error) is TemplateError:
        return one_line(str(error), 100)
    return one_line(f"{type(error).__name__}: {error}", 100)


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    return _environment().from_string(template)


def _environment() -> _BoundedEnvironment:
    """Return an environment with what transformers gives to chat templates."""
    environment = _BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
    )
    filters, functions = _tables(environment)
    filters["tojson"] = _bounded(_to_json)
    functions["raise_exception"] = _raise
    functions["strftime_now"] = TEMPLATE_TIME.strftime
    return environment


def _tables(environment: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an environment's filters and global functions, whose types Jinja leaves open."""
    return environment.filters, environment.globals


class _Generation(ext.Extension):
    """The tag with which templates mark the assistant's words. Its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_unchanged"), [], [], body).set_lineno(line)

    @pass_eval_context
    def _unchanged(self, _context: Any, caller: Any) -> str:
        return caller()


class _BoundedGenerator(CodeGenerator):
    """Compiles ``a ~ b`` to a call that can be bounded; other operators have a hook for it."""

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:  # noqa: N802 - as Jinja names it
        self.write("environment.bounded_concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox whose operators, calls and output stay within ``LONGEST``."""

    code_generator_class = _BoundedGenerator
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        filters, functions = _tables(self)
        filters[_STEPS] = _counted
        del functions["lipsum"]
        for name in ("center", "format", "indent", "replace"):
            filters[name] = _bounded(filters[name])

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Parse a template, and count the steps of its loops."""
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, _STEPS, [], [], None, None, lineno=loop.lineno)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator unless its result would be huge."""
        texts = [one for one in (left, right) if hasattr(one, "__len__")]
        if operator == "*" and texts:
            _require_small(_size(left) * _size(right))
        elif operator in ("*", "**"):
            _require_small(max(abs(left), abs(right) ** (1 if operator == "*" else 3)))
        elif texts:
            _require_small(sum(map(_size, texts)))
            _require_small(max(map(int, _WIDTH.findall(str(texts[0]))), default=0))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function or method unless one of its arguments is huge."""
        for value in (*args, *kwargs.values()):
            _require_small(_size(value))
        return super().call(context, obj, *args, **kwargs)

    def bounded_concat(self, parts: tuple[Any, ...]) -> str:
        """Join the operands of ``~``."""
        return self.concat(map(str, parts))

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Join what a template writes, as long as it is not huge."""
        kept: list[str] = []
        size = 0
        for part in parts:
            size += len(part)
            _require_small(size)
            kept.append(part)
        return "".join(kept)


@pass_context
def _counted(context: Any, items: Iterable[Any]) -> Iterator[Any]:
    """Yield the items of a loop while the template has steps left."""
    left: list[int] = context.parent[_STEPS]
    for item in items:
        left[0] -= 1
        if left[0] < 0:
            raise SecurityError(f"its loops take over {MOST_STEPS:,} steps")
        yield item


def _bounded(function: Any) -> Any:
    """Return ``function`` with a check that no argument is huge."""

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            _require_small(_size(value))
        return function(*args, **kwargs)

    return checked


def _size(value: Any) -> int:
    if isinstance(value, int):
        return abs(value)
    return len(value) if hasattr(value, "__len__") else 0


def _require_small(size: float) -> None:
    if size > LONGEST:
        raise SecurityError(f"it makes a text or number beyond {LONGEST:,}")


def _raise(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: Any, *, ensure_ascii: bool = False, **options: Any) -> str:
    """Write JSON without escaping for HTML, which Jinja's own filter does."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _without_space(text: str) -> str:
    return "".join(text.split())
