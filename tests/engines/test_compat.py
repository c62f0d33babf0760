"""Every change to another library does what it says, and is still needed.

Where a test named ``..._is_still_needed`` fails, the library has changed: remove that part of
``medcot.engines.compat`` and its test.
"""

import importlib.util
import inspect
import io
import logging
import sys
import types

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from medcot.engines import compat
from medcot.engines.fused.cross_entropy import ChunkedLogProb


def unpatched(name):
    """A second copy of the module ``name``, as it is without medcot."""
    found = importlib.util.find_spec(name)
    spec = importlib.util.spec_from_file_location(f"{name}_unpatched", found.origin)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Heard(logging.Handler):
    """Keeps messages and the loggers they came through."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        self.messages.append((record.name, record.getMessage()))


@pytest.fixture
def heard():
    handler = Heard()
    loggers = [logging.getLogger(name) for name in {one.logger for one in compat.KNOWN_MESSAGES}]
    for logger in loggers:
        logger.addHandler(handler)
    yield handler.messages
    for logger in loggers:
        logger.removeHandler(handler)


def provoke_messages(tiny_model, folder):
    """Do what makes the libraries say each of the known messages."""
    from datasets import Dataset
    from transformers.trainer_utils import align_special_tokens
    from trl import SFTConfig, SFTTrainer

    compat.provide_loss(ChunkedLogProb, "cpu")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model.config.pad_token_id = tokenizer.eos_token_id
    align_special_tokens(model, tokenizer)
    arguments = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        padding_free=True,
        max_length=None,
        use_cpu=True,
        bf16=False,
        report_to=[],
    )
    rows = Dataset.from_list([{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}])
    SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)


def test_silencing_each_known_message_is_still_needed(tiny_model, tmp_path, heard):
    provoke_messages(tiny_model, tmp_path)
    for known in compat.KNOWN_MESSAGES:
        assert any(name == known.logger and known.part in text for name, text in heard), known


def test_known_messages_are_silenced_and_others_are_not(tiny_model, tmp_path, heard):
    with compat.known_messages_silenced():
        provoke_messages(tiny_model, tmp_path)
        logging.getLogger("trl.trainer.sft_trainer").warning("Something unforeseen.")
    known = [one.part for one in compat.KNOWN_MESSAGES]
    assert not [text for _, text in heard if any(part in text for part in known)]
    assert ("trl.trainer.sft_trainer", "Something unforeseen.") in heard
    heard.clear()
    first = compat.KNOWN_MESSAGES[0]
    logging.getLogger(first.logger).warning(first.part)
    assert heard == [(first.logger, first.part)]


def test_denying_jupyter_is_still_needed_next_to_marimo(monkeypatch):
    monkeypatch.setitem(sys.modules, "marimo", types.ModuleType("marimo"))
    assert unpatched("transformers.utils.import_utils").is_in_notebook()


def test_providing_a_loss_is_still_needed_without_triton():
    if importlib.util.find_spec("triton") is not None:
        pytest.skip("TRL has a loss of its own where Triton is")
    assert unpatched("trl.trainer.utils")._ChunkedLogProbFunction is None


def test_letting_the_8_bit_optimizer_run_ahead_is_still_needed():
    optimizer = pytest.importorskip("bitsandbytes.optim.optimizer")
    assert "sync_gpu(" in inspect.getsource(optimizer)
    wait = optimizer.sync_gpu
    with compat.unhurried_optimizer():
        assert optimizer.sync_gpu is not wait
    assert optimizer.sync_gpu is wait


def test_keeping_accelerate_from_splitting_is_still_needed():
    from accelerate import Accelerator

    assert 'os.environ.get("ACCELERATE_USE_FSDP"' in inspect.getsource(Accelerator.__init__)


def test_naming_the_cpu_without_a_number_is_still_needed():
    stored = io.BytesIO()
    torch.save(torch.zeros(1), stored)
    stored.seek(0)
    with pytest.raises(RuntimeError, match="cpu:0"):
        torch.load(stored, map_location="cpu:0")


def test_private_names_of_transformers_that_engines_set_are_read_there():
    from transformers import PreTrainedConfig
    from transformers.distributed import fsdp

    assert "_is_fsdp_managed_module" in inspect.getsource(fsdp)
    assert isinstance(PreTrainedConfig._attn_implementation, property)


@pytest.mark.parametrize(
    ("change", "variable"),
    [
        (compat.disable_unsloth_statistics, "UNSLOTH_DISABLE_STATISTICS"),
        (compat.let_allocator_grow, "PYTORCH_CUDA_ALLOC_CONF"),
        (compat.fix_cublas_workspace, "CUBLAS_WORKSPACE_CONFIG"),
    ],
)
def test_a_variable_that_the_user_set_wins(monkeypatch, change, variable):
    monkeypatch.setenv(variable, "the user's")
    change()
    assert compat.os.environ[variable] == "the user's"


@pytest.fixture
def old_torchao(tmp_path, monkeypatch):
    """The torchao of Kaggle's image of August 2026, as far as its version."""
    from peft import import_utils

    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao" / "__init__.py").write_text("")
    facts = tmp_path / "torchao-0.10.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: torchao\nVersion: 0.10.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    real = import_utils.is_torchao_available
    real.cache_clear()
    yield real
    real.cache_clear()


def patched_modules():
    from peft import import_utils
    from peft.tuners.lora import torchao
    from peft.utils import quantization_utils

    return import_utils, torchao, quantization_utils


def test_the_old_torchao_patch_is_still_needed(old_torchao):
    with pytest.raises(ImportError, match="incompatible version of torchao"):
        old_torchao()


def test_a_model_gets_its_adapter_beside_an_old_torchao(
    old_torchao, tiny_model, tmp_path, monkeypatch
):
    from tests.support.training_run import Training, make_rows

    for module in patched_modules():
        monkeypatch.setattr(module, "is_torchao_available", old_torchao)
    training = Training(tmp_path / "run", tiny_model, make_rows(tiny_model), steps=1)
    assert training.fit().steps == 1


def test_with_triton_and_without_a_gpu_the_loss_is_ours(monkeypatch):
    """PyTorch's default build for Linux brings Triton to machines that have no GPU."""
    import trl.trainer.utils

    class OfTriton(torch.autograd.Function):
        pass

    monkeypatch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", OfTriton)
    compat.provide_loss(ChunkedLogProb, "cuda")
    assert trl.trainer.utils._ChunkedLogProbFunction is OfTriton
    compat.provide_loss(ChunkedLogProb, "cpu")
    assert trl.trainer.utils._ChunkedLogProbFunction is ChunkedLogProb


def shared_keys_of(model, monkeypatch, capability):
    """How SDPA is asked to handle keys that heads share, in an unmasked pass of ``model``."""
    from transformers.integrations import sdpa_attention

    usual = torch.nn.functional.scaled_dot_product_attention
    asked = []

    def attend(*arguments, **options):
        asked.append(options.get("enable_gqa", False))
        return usual(*arguments, **options)

    monkeypatch.setattr(sdpa_attention, "use_gqa_in_sdpa", sdpa_attention.use_gqa_in_sdpa)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    compat.repeat_shared_keys()
    logits = model(input_ids=torch.arange(12)[None]).logits
    return set(asked), logits


def test_a_t4_is_not_asked_for_shared_keys(tiny_model, monkeypatch):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="sdpa")
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    newer, expected = shared_keys_of(model, monkeypatch, (8, 0))
    assert newer == {True}  # transformers still asks for it
    older, logits = shared_keys_of(model, monkeypatch, (7, 5))
    assert older == {False}
    assert torch.allclose(logits, expected, atol=1e-5)
