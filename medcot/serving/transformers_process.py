"""Runs in a process of its own: transformers' server, with the model that ``medcot ask`` loads.

``transformers serve`` loads models by name and has no place for a base in 4 bits or fp8 with an
adapter on it. So its own application is given a model that is loaded already, as the run had it.
It listens on a Unix socket that only :mod:`medcot.serving.frontend` talks to.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from medcot.credentials import prepare_credentials, redacted_output
from medcot.engines import loading as models
from medcot.engines.base import LoadedModel, end_token_ids
from medcot.errors import InputError, RunFailed
from medcot.hardware.host_memory import keep_heap_small
from medcot.inference.ask import inference_plan, load_run
from medcot.network import prepare_network
from medcot.runs.directory import RunDirectory
from medcot.serving.target import Kind
from medcot.terminal import say


def load_model(kind: Kind, path: Path, directory: RunDirectory) -> LoadedModel:
    """Load what is served, as ``medcot ask`` would.

    Raises:
        InputError: It cannot be loaded.
    """
    if kind == "run":
        return load_run(directory)
    config = directory.config()
    if kind == "merged":
        changed = {"model": str(path), "model_revision": "", "quantization": "none"}
        config = config.model_copy(update=changed)
    plan = inference_plan(config)
    loaded = models.load_base(config, plan)
    if kind == "adapter":
        models.load_adapter(loaded, config, plan, path)
    return loaded


def make_application(loaded: LoadedModel) -> Any:
    """Return transformers' application for one loaded model: its completions alone are used."""
    from transformers.cli.serving.completion import CompletionHandler
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.cli.serving.server import build_server
    from transformers.cli.serving.utils import GenerationState, Modality

    model, tokenizer = ServedModel(loaded, _open_generation(loaded)), ServedTokenizer(loaded)

    class OneModel(ModelManager):
        """Has one model, whatever the name."""

        def load_model_and_processor(self, *_: Any, **__: Any) -> Any:
            return model, tokenizer

        @staticmethod
        def get_model_modality(*_: Any, **__: Any) -> Modality:
            return Modality.LLM

    manager, state = OneModel(model_timeout=-1), GenerationState()
    completions = CompletionHandler(model_manager=manager, generation_state=state)
    unused: Any = None
    return build_server(
        manager,
        chat_handler=unused,
        completion_handler=completions,
        response_handler=unused,
        transcription_handler=unused,
        generation_state=state,
    )


def _open_generation(loaded: LoadedModel) -> Any:
    """Return the model's generation settings with the run's end tokens, and nothing truncated.

    A request with temperature 0 is answered greedily; any other samples from the whole
    distribution.
    """
    settings = copy.deepcopy(loaded.model.generation_config)
    settings.update(
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        eos_token_id=sorted(end_token_ids(loaded)),
        pad_token_id=loaded.tokenizer.pad_token_id,
    )
    return settings


@dataclass
class ServedModel:
    """What transformers' server uses of a model."""

    loaded: LoadedModel
    generation_config: Any

    @property
    def device(self) -> Any:
        """Return where the inputs belong."""
        return self.loaded.model.device

    def generate(self, **options: Any) -> Any:
        """Generate as ``medcot ask`` does."""
        from medcot.inference.loglikelihood import inference

        with inference(self.loaded):
            return self.loaded.model.generate(**options)


class ServedTokenizer:
    """What transformers' server uses of a tokenizer, with the run's ways.

    A prompt gets exactly one start token, and the tags of a thought are shown even where they are
    special tokens.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._own = loaded.tokenizer
        ends = self._own.convert_ids_to_tokens(sorted(end_token_ids(loaded)))
        silent = {*ends, self._own.bos_token, self._own.pad_token}
        self._tokenizer = _show_special_tokens(self._own.backend_tokenizer, silent)

    def __call__(self, text: str, **_: Any) -> Any:
        """Tokenise a prompt, as one row of tensors."""
        import torch
        from transformers import BatchEncoding

        from medcot.data.tokenization import encode_text

        ids = torch.tensor([encode_text(self._own, text)])
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


def _show_special_tokens(backend: Any, silent: set[str | None]) -> Any:
    """Return a tokenizer for decoding that keeps all special tokens but the ``silent`` ones."""
    from tokenizers import Tokenizer

    described = json.loads(backend.to_str())
    shown = [
        one for one in described["added_tokens"] if one["special"] and one["content"] not in silent
    ]
    if not shown:
        return backend
    for one in shown:
        one["special"] = False
    return Tokenizer.from_str(json.dumps(described))


def main(arguments: Sequence[str] | None = None) -> None:
    """Load the model and serve it on the socket: ``KIND PATH RUN SOCKET``."""
    keep_heap_small()
    kind, path, run, place = sys.argv[1:] if arguments is None else arguments
    named: Kind = next(one for one in get_args(Kind) if one == kind)
    with redacted_output():
        try:
            prepare_credentials()
            prepare_network()
            loaded = load_model(named, Path(path), RunDirectory(Path(run)))
        except (InputError, RunFailed) as error:
            say(str(error), err=True)
            sys.exit(2)
        import uvicorn

        uvicorn.run(
            make_application(loaded), uds=place, log_level="warning", timeout_graceful_shutdown=1
        )


if __name__ == "__main__":
    main()
