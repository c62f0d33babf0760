"""Loads a local folder's tokenizer without transformers, which takes seconds to import.

It counts and shows tokens before a run; the run itself uses the library's own. A test compares
the two.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from medcot.data.chat_templates import choose_template
from medcot.errors import InputError, one_line


@dataclass(frozen=True, slots=True)
class TokenIds:
    """The result of calling a tokenizer: the ids of one text, or of each of several."""

    input_ids: Any


@dataclass(frozen=True, slots=True)
class FastTokenizer:
    """A tokenizer with what :mod:`medcot.data.tokenization` uses of transformers' own."""

    backend: Any
    chat_template: str
    bos_token_id: int | None
    eos_token_id: int | None
    eos_token: str | None
    special_tokens_map: dict[str, str] = field(default_factory=dict[str, str])

    def __call__(self, text: str | list[str], *, add_special_tokens: bool = True) -> TokenIds:
        """Tokenise one text, or several at once."""
        if isinstance(text, str):
            found = self.backend.encode(text, add_special_tokens=add_special_tokens)
            return TokenIds(found.ids)
        many = self.backend.encode_batch_fast(text, add_special_tokens=add_special_tokens)
        return TokenIds([one.ids for one in many])

    def __len__(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    def decode(self, ids: list[int]) -> str:
        """Return the text of the tokens, special tokens included."""
        return self.backend.decode(ids, skip_special_tokens=False)


def load_fast_tokenizer(folder: Path) -> FastTokenizer:
    """Load the tokenizer in ``folder``.

    Raises:
        InputError: the folder has no ``tokenizer.json``, or its files are damaged.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.exists():
        raise InputError(
            f"--model {folder}", "no tokenizer.json in it", "expected a folder with a model"
        )
    settings = _read_settings(folder / "tokenizer_config.json")
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises no narrower one
        raise _damaged(path, error) from None
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    special = {name: _text(settings[name]) for name in names if settings.get(name)}
    bos, eos = special.get("bos_token"), special.get("eos_token")
    return FastTokenizer(
        backend=backend,
        chat_template=_chat_template(folder, settings),
        bos_token_id=backend.token_to_id(bos) if bos else None,
        eos_token_id=backend.token_to_id(eos) if eos else None,
        eos_token=eos,
        special_tokens_map=special,
    )


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    if not isinstance(settings, dict):
        raise _damaged(path, TypeError("not a JSON object"))
    return cast("dict[str, Any]", settings)


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"--model {path}", f"it cannot be read ({one_line(str(error), 80)})", "fetch it again"
    )


def _chat_template(folder: Path, settings: dict[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    return choose_template(settings.get("chat_template"))


def _text(token: Any) -> str:
    """Return a special token as text; older files store it as an object."""
    text = str(cast("dict[str, Any]", token).get("content") if isinstance(token, dict) else token)
    return text.encode("utf-8", "replace").decode()
