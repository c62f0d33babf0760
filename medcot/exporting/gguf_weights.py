"""Compares the weights of a GGUF file with the base plus what training added.

llama.cpp stores the rows of Llama's query and key in another order, and rounds; what is measured is
what both leave alone: the share of the adapter's product in each weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medcot.catalog import Message
from medcot.exporting import checks
from medcot.exporting.run_model import RunModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

SHARE_SLACK = 0.25
"""By how much the adapter's share may differ from 1, besides six standard errors of rounding."""

ROUNDING = 0.01
"""Rounding error, relative to a weight's norm, beyond which it is another weight. 16 bits cost some
thousandths."""


def check_gguf_weights(model: RunModel, file: Path) -> Iterator[Message]:
    """Name each trained weight that does not hold the whole adapter, or is another weight.

    For a file in 16 bits: fewer round a small adapter away. Weights that llama.cpp stores in
    another shape or under no known name are left to the loss.
    """
    from gguf.quants import dequantize

    try:
        reader = open_weights(file)
    except Exception as error:  # noqa: BLE001 - damaged files raise whatever the damage suggests
        yield Message("proof_not_loaded", {"why": checks.shorten(str(error))})
        return
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    names = _stored_names(model, reader)
    base, deltas = model.base_tensors(), model.deltas()
    if gone := sorted(name for name in deltas if names.get(name, name) not in tensors):
        if len(gone) < len(deltas):
            yield Message("proof_weights_missing", {"n": len(gone), "name": gone[0]})
        return
    heads = model.text_config.num_attention_heads
    kv_heads = getattr(model.text_config, "num_key_value_heads", None) or heads
    for name, delta in deltas.items():
        tensor = tensors[names[name]]
        before, added = base.read(name).float().numpy(), delta().float().numpy()
        after = dequantize(tensor.data, tensor.tensor_type)
        if after.shape != before.shape:
            yield Message("proof_weight_differs", {"name": name})
            continue
        n = kv_heads if "k_proj" in name else heads
        layouts = [(before, added)]
        if before.shape[0] % (2 * n) == 0:
            layouts.append((_permuted(before, n), _permuted(added, n)))
        finding = _compare(name, layouts, after)
        if finding is not None:
            yield finding


def open_weights(file: Path) -> Any:
    """Return a reader of the gguf package that steps over lists: each token costs it an array."""
    import struct

    import numpy as np
    from gguf import GGUFReader, GGUFValueType

    class WeightReader(GGUFReader):
        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if GGUFValueType(raw_type) != GGUFValueType.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            file: Any = self.data
            kind, length = struct.unpack_from("<IQ", file, orig_offs)
            end, scalar = orig_offs + 12, self.gguf_scalar_to_np.get(GGUFValueType(kind))
            if scalar is not None:
                end += length * np.dtype(scalar).itemsize
            elif kind == GGUFValueType.STRING:
                for _ in range(length):
                    end += 8 + struct.unpack_from("<Q", file, end)[0]
            else:
                return super()._get_field_parts(orig_offs, raw_type)
            return end - orig_offs, [], [], [GGUFValueType.ARRAY]

    return WeightReader(file)


def _compare(name: str, layouts: list[tuple[Matrix, Matrix]], after: Matrix) -> Message | None:
    """Compare in the layout of rows that fits best."""
    import numpy as np

    if not np.isfinite(after).all():
        return Message("proof_not_finite", {"name": name})
    before, added = min(layouts, key=lambda one: float(np.square(after - one[0]).sum()))
    power = float(np.square(added).sum())
    if power == 0:
        return None
    share = float(((after - before) * added).sum()) / power
    rest = np.square(after - before - share * added)
    if float(rest.sum()) > ROUNDING**2 * float(np.square(before).sum()):
        return Message("proof_weight_differs", {"name": name})
    error = (float(rest.mean()) / power) ** 0.5
    if abs(share - 1) <= SHARE_SLACK + 6 * error:
        return None
    code = "proof_not_merged" if abs(share) < SHARE_SLACK + 6 * error else "proof_scaled"
    return Message(code, {"name": name, "share": round(share, 2)})


def _permuted(weight: Matrix, heads: int) -> Matrix:
    """Return the rows in llama.cpp's order, which pairs the halves of each head (its RoPE)."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _stored_names(model: RunModel, reader: Any) -> dict[str, str]:
    """Return the name in the file of each trained weight whose name llama.cpp's table knows."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    field = reader.get_field("general.architecture")
    named = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
    arch = named.get(field.contents() if field else "")
    if arch is None:
        return {}
    table = get_tensor_name_map(arch, model.text_config.num_hidden_layers)
    found = {name: table.get_name(name, try_suffixes=(".weight",)) for name in model.deltas()}
    return {name: stored for name, stored in found.items() if stored is not None}
