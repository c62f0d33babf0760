"""Extracts the option letter that an answer states last, or None: nothing is guessed.

A letter counts where it is *stated*: after a cue ("Answer: B", "故选B"), as the whole of a line, in
``\\boxed{}``, or called right ("B is correct"). A letter that merely occurs ("vitamin B") does not.
Two letters in one statement, or a labelled answer that is no option, are unclear: None.
An option's full text after a cue, or as the whole answer, states its letter.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping

from medcot.data.prompts import answer_after_thought
from medcot.records import Language, Question

_LABELS = (
    r"\\boxed\s*\{\s*(?:\\?(?:text(?:bf)?|mathrm|mathbf)\s*\{)*\s*",
    r"\b(?:ans|answer(?:\s+key)?|choice|correct|(?:correct|right|best|final)\s+option)\.?\s*"
    r"(?:[:=]|[-–—](?=\s))\s*(?:the\s+)?(?:option\s+|choice\s+)?",
    r"(?:答案|正确选项|最佳选项)\s*(?:】|\])?\s*(?:应该?|就?是|选择?|为|:|=|\s)*(?:选?项)?\s*",
    r"<\s*(?:final[_ ]?)?(?:answer|choice|option)\s*>\s*(?:option\s+|choice\s+)?",
    r"[\"'](?:\w+[_ ])?(?:answer|choice|option|答案)(?:[_ ]\w+)?[\"']\s*:"
    r"\s*[\"']?\s*(?:option\s+)?",
)
"""Labels: cues in either language that leave no doubt about what follows."""

LONGEST = 6000
"""Characters at the end of an answer that are read. What it states last is there, and a model that
repeats itself for thousands of words costs seconds, not minutes."""

_BE = r"(?:is|would be|must be|should be|has to be|will be|remains)"
_SURE = (
    r"(?:\s*,?\s*(?:therefore|thus|hence|clearly|likely|most likely|probably|definitely"
    r"|indeed|then))*"
)
_NOUN = r"(?:(?:the\s+)?(?:option|choice|letter|answer)\s+)?"
_RIGHT = (
    r"(?:the\s+)?(?:(?:single|most|clearly)\s+)?(?:correct|right|best|likely|appropriate)\b"
    r"|the\s+answer\b"
)
_PROSE: dict[Language, tuple[str, ...]] = {
    "en": (
        rf"\b(?:answer|choice|option)\b[^.:;?\n]{{0,60}}?\b{_BE}\b{_SURE}\s*:?\s*{_NOUN}",
        rf"\b{_BE}\b{_SURE}\s*:?\s*(?:the\s+)?(?:option|choice|letter)\s+",
        rf"\b(?:choose|pick|select|say|go(?:ing)? with|opt for|settle on)\s+{_NOUN}",
        rf"\b(?:it|that|this|which)(?:'s|\s+(?:is|must be|has to be|should be))"
        rf"{_SURE}\s+{_NOUN}",
        rf"(?:→|=>|\b(?:so|thus|hence|therefore),?)\s*{_NOUN}",
        rf"\bleaves(?:\s+us)?(?:\s+(?:with|only))*\s+{_NOUN}",
        rf"\b(?:most|best|correct|preferred)\b(?![^.;?\n]{{0,60}}\bexcept\b)[^.:;?\n]{{0,60}}?"
        rf"\b{_BE}\b{_SURE}\s*:?\s*{_NOUN}",
    ),
    "zh": (
        r"(?:应该?|故|因此|所以|可|最终|我)?(?:选择?|选项)(?:的?是|为|:)?\s*",
        r"(?:应该?是|应为|就是|只能是|认为是|(?:正确|合适|可能|符合)的是)\s*(?:选项)?\s*",
        r"最(?:可能|合适|适合|佳|恰当|符合)的?[^。;,\n]{0,12}[是为]\s*(?:选项)?\s*",
    ),
}
_CALLED_RIGHT: dict[Language, str] = {
    "en": rf"\s+(?:{_BE}|seems|appears)\s+(?:{_RIGHT})",
    "zh": r"\s*(?:选?项)?(?:是|为|才是)?(?:最?正确|对(?=$|[\n。.,;、])|对的|最合适|最佳|最符合)",
}
_PREFERRED = (
    r"(?:\bbetween\b[^.;\n]{0,40},|\bof\s+(?:these|those|the\s+\w+)(?:\s+\w+)?,|\b(?:but|yet|however),?)\s*"
    r"(?:option\s+)?"
)
_AS_PREFERRED = (
    r"\s+(?:is|seems|appears|looks)\s+(?:the\s+)?(?:far\s+|much\s+|clearly\s+)?"
    r"(?:more|most|better|best|likelier)\b(?:\s+(?:appropriate|likely|suitable|plausible|fitting|probable))?"
    r"(?:\s+(?:answer|choice|option|one))?\s*(?=$|[\n.,;])"
)
"""One of two that were weighed: "Between C and D, D is more appropriate"."""
_BEFORE_CALLED: dict[Language, str] = {
    "en": r"(?:^|[,;:.]\s*|\b(?i:so|thus|that|therefore|hence|option|choice|answer),?\s+)(?!\s)",
    "zh": r"(?<![A-Za-z])",
}
_DENIED = re.compile(
    r"(?:\bnot|n't|never|cannot|\bif|\bwhether|\bdoubt|不应?该?|不能|并非|而?不是|没有|如果|若)\s*"
    r"(?:think|believe|say|be|to)?\s*(?:that\s+)?(?:the\s+)?"
    r"(?:(?:correct|right|best|final|my)\s+)?$"
)
_NOT_BUT = (
    r"(?:不是|并非|not\s+)\s*{noun}{letter}\s*(?:选?项)?\s*,?\s*(?:but|而是|是)\s*(?:rather\s+)?"
)
_CONTRAST = r"(?:^|[,;:。]\s*|\.\s+)(?={excluded})"
"""Start of a statement like "not A but C"."""
_WRONG = re.compile(
    r"\b(?:not|wrong|incorrect|unlikely|false|excluded|contraindicated)\b|n't\b|错|不|非|排除",
    re.IGNORECASE,
)
_REJECTED = re.compile(
    r"(?:\s*(?:,|/|\bor\b|\band\b|和|、|与|及)\s*[(\[]?[A-J][)\]]?)*"
    r"\s*(?:选?项)?\s*(?:"
    r"(?:is|are|was|were|would|can|could|may|must|should|will|has|have|does|do|seems?|cannot)\b"
    r"(?:\s+(?:be|been|to|also|clearly|therefore|thus|both|all|simply|definitely|surely))*\s*"
    r"(?:\bnot\b|n't\b|wrong|incorrect|false|unlikely|out\b|ruled|excluded|eliminated|discarded|rejected"
    r"|dismissed|contraindicated|less\b|inappropriate|inferior)"
    r"|(?:isn't|aren't|can't|won't|doesn't|cannot|couldn't|wouldn't)\b"
    r"|(?:都|均|也|就|可以?|应|被|是)*(?:错|误|排除|不(?:对|正确|符合|合适|恰当|成立|考虑|能选|可能)"
    r"|(?:不|并非)是?(?:正确|最佳)?(?:答案|选项)|不选(?!\s*[(（]?[A-Za-z]))"
    r")",
    re.IGNORECASE,
)
"""What denies the letters before it: "so B is wrong", "A and D can be ruled out"."""
_GENUS = re.compile(
    r"\.\s+(?!(?:because|since|as|it|the|this|that|for|and|so|in|with|no|not)\b)[a-z]{3,}"
)
"""What makes a capital and a full stop an abbreviated name: "E. coli", "C. difficile"."""
_JOINED = re.compile(r"\s*(?:,|/|&|\+|\bor\b|\band\b|和|或者?|、|与|及)\s*(?:和|or|and)?\s*")
_GOES_ON = re.compile(
    r"\s*(?:$|[\n.,;:!。、…)\]}【<\"'(\[\\])|\s+[-–—]"
    r"|\s+(?:because|since|as|but|not|rather|due|is|for|over|instead|which|given|would|here)\b"
    r"|\s*(?:选?项|因|不|而|是|正确|，|最符合|这)"
)


def option_continuations(question: Question) -> list[str]:
    """List the continuation whose likelihood is compared for each option: its letter.

    English puts a space before it and Chinese none, as after "Answer:" and "答案：".
    """
    space = " " if question.language == "en" else ""
    return [f"{space}{letter}" for letter in question.options]


def extract_letter(text: str, options: Mapping[str, str], language: Language) -> str | None:
    """Return the letter that ``text`` states last, or None if it states none clearly.

    ``text`` is the part after the thought. If it still has the thought, that is dropped; a thought
    that never closes leaves no answer.
    """
    answer = answer_after_thought(text)
    if answer is None:
        return None
    plain = _plain(re.sub(r"\n{3,}", "\n\n", answer[-LONGEST:]))[-LONGEST:]
    if small := re.fullmatch(r"[(\[]?([a-z])[)\]]?[.:]?", plain):
        return small[1].upper() if small[1].upper() in options else None
    stated = [
        *_labelled(plain, options, language),
        *_called_right(plain, options, language),
        *_text_called_right(plain, options, language),
        *_lines(plain, options, whole=True),
    ]
    # "A. Its text is wrong, because …" after the answer explains and states nothing.
    stated = stated or list(_lines(plain, options, whole=False))
    if stated:
        return max(stated, key=lambda one: one[0])[1]
    return _by_text(plain, options)


Statement = tuple[int, str | None]
"""End of a statement in the text, and its letter; None for an unclear one."""


def _plain(text: str) -> str:
    """Fold full-width forms to ASCII and drop emphasis marks."""
    folded = unicodedata.normalize("NFKC", text).replace("’", "'")
    marks = r"[*`$]|\\[()\[\]]|(?<!\w)_+|_+(?!\w)|^\s*[#>]+\s*"
    return re.sub(marks, "", folded, flags=re.MULTILINE).strip()


def _letter(options: Mapping[str, str]) -> str:
    letters = "".join(map(re.escape, options))
    return rf"(?:[(\[{{\"'“‘【「]\s*)?(?P<letter>[{letters}])(?:\s*[)\]}}\"'”’】」])?"


def _labelled(text: str, options: Mapping[str, str], language: Language) -> Iterator[Statement]:
    """Find letters after a cue."""
    letter = _letter(options)
    excluded = _NOT_BUT.format(noun=_NOUN, letter=letter.replace("?P<letter>", "?:"))
    contrast = _CONTRAST.format(excluded=excluded)
    for index, cue in enumerate((*_LABELS, *_PROSE[language], contrast)):
        certain = 0 < index < len(_LABELS)
        for found in re.finditer(rf"{cue}(?:{excluded})?", text, re.IGNORECASE):
            if _DENIED.search(text[max(0, found.start() - 40) : found.start()].lower()):
                continue
            stated = _read_letters(text, found.end(), options)
            if stated and not 0 <= index < len(_LABELS) and _REJECTED.match(text, stated[0]):
                continue
            stated = stated or _read_text(text, found.end(), options, certain=certain)
            if stated:
                yield stated


def _read_letters(text: str, start: int, options: Mapping[str, str]) -> Statement | None:
    """Read the letter, or several joined ones, at ``start``."""
    pattern = re.compile(_letter(options))
    first = found = pattern.match(text, start)
    if not first:
        return _read_small(text, start, options)
    letters, end = set[str](), start
    while found:
        letters.add(found["letter"])
        end = found.end()
        joint = _JOINED.match(text, end)
        found = pattern.match(text, joint.end()) if joint else None
        if found and not _stands_alone(text, found, options):
            break
    if len(letters) > 1:
        return (end, None)
    asked = text[end : end + 1] == "?"
    return (end, first["letter"]) if _stands_alone(text, first, options) and not asked else None


def _stands_alone(text: str, found: re.Match[str], options: Mapping[str, str]) -> bool:
    """Tell a letter from the start of "A-fib", "B cells" or "A patient with"."""
    letter, end = found["letter"], found.end()
    own = options[letter]
    after = text[end:].lstrip(" .:,)-–—\n")
    if own and _same(after[: len(own)], own):
        return True
    if not found.group().startswith(letter):
        return True  # In brackets or quotation marks.
    if _GENUS.match(text, end):
        return False
    if letter == "I":
        return bool(re.compile(r"\s*(?:$|[\n.,;:)])").match(text, end))
    return bool(_GOES_ON.match(text, end))


def _read_small(text: str, start: int, options: Mapping[str, str]) -> Statement | None:
    """Read a lower-case letter that ends its statement."""
    found = re.compile(r"[(\[]?([a-z])[)\]]?\s*(?=$|[\n.;])").match(text, start)
    letter = found[1].upper() if found else ""
    return (found.end(), letter) if found and letter in options else None


def _read_text(
    text: str, start: int, options: Mapping[str, str], *, certain: bool
) -> Statement | None:
    """Read an option's full text after a cue. After a ``certain`` label, the rest is unclear."""
    longest = max(map(len, options.values()), default=0) + 40  # with room for marks around it
    rest = re.compile(rf"\s*([^\n]{{0,{longest}}})").match(text, start)
    said = rest[1] if rest else ""
    said = re.split(r"[<}\"]", said)[0]
    for part in (said, re.split(r"[.;。；]", said)[0]):
        if letter := _by_text(part, options):
            return (start + len(said), letter)
    return (start, None) if certain and said else None


def _called_right(text: str, options: Mapping[str, str], language: Language) -> Iterator[Statement]:
    """Find letters that are called right: "B is correct", "选项B正确"."""
    letter = _letter(options)
    called = rf"{_BEFORE_CALLED[language]}{letter}{_CALLED_RIGHT[language]}"
    preferred = rf"(?i:{_PREFERRED}){letter}(?i:{_AS_PREFERRED})"
    for pattern in (called, preferred):
        for found in re.finditer(pattern, text, re.MULTILINE):
            yield (found.end(), found["letter"])


def _text_called_right(
    text: str, options: Mapping[str, str], language: Language
) -> Iterator[Statement]:
    """Find options whose own text is called right: "Heparin is the correct answer"."""
    for letter, option in options.items():
        if len(_folded(option)) < 3 or _by_text(option, options) != letter:
            continue
        own = r"\s+".join(map(re.escape, _plain(option).split()))
        pattern = rf"(?<![\w-]){own}{_CALLED_RIGHT[language]}"
        for found in re.finditer(pattern, text, re.IGNORECASE):
            if not _DENIED.search(text[max(0, found.start() - 40) : found.start()].lower()):
                yield (found.end(), letter)


def _lines(text: str, options: Mapping[str, str], *, whole: bool) -> Iterator[Statement]:
    """Find lines that are a letter, alone or with its option's text; ``whole``: and nothing more.

    Several different ones in a row repeat the options and state nothing.
    """
    for letters in _runs(text, options):
        end, letter, bare = letters[-1]
        if len({one[1] for one in letters}) == 1 and bare is whole:
            yield end, letter


def _runs(text: str, options: Mapping[str, str]) -> Iterator[list[tuple[int, str, bool]]]:
    """Group consecutive lines of :func:`_lines`: their ends, letters, and whether whole."""
    position, run = 0, list[tuple[int, str, bool]]()
    for line in [*text.splitlines(keepends=True), "-"]:
        if found := _line_letter(line.strip(), options):
            run.append((position + len(line.rstrip()), *found))
        elif line.strip() and run:
            yield run
            run = []
        position += len(line)


def _line_letter(line: str, options: Mapping[str, str]) -> tuple[str, bool] | None:
    pattern = rf"(?:[-–•]\s+)?{_letter(options)}\s*(?P<mark>[.:、,)-]?)\s*(?P<rest>.*)$"
    found = re.match(pattern, line)
    if not found:
        return None
    letter, rest = found["letter"], found["rest"]
    own = options[letter]
    if not rest or _same(rest, own) or re.match(r"(?:because|since|as)\b|因为", rest):
        return letter, True
    marked = found["mark"] or line[: found.start("letter")].strip(" -–•")
    begins = marked and own and _same(rest[: len(own)], own)
    return (letter, False) if begins and not _WRONG.search(rest[len(own) :]) else None


def _by_text(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the only option whose text is ``text``."""
    same = [letter for letter, option in options.items() if _same(text, option)]
    return same[0] if len(same) == 1 else None


def _same(text: str, option: str) -> bool:
    return _folded(text) == _folded(option) != ""


def _folded(text: str) -> str:
    words = _plain(text).casefold().strip(" \n.,;:!?。，；：！\"'()")
    return re.sub(r"\s+", "", re.sub(r"^(?:an?|the)\s+", "", words))
