"""PyTorch's private functions are as the code that calls them expects."""

import operator

import pytest
import torch

from medcot.engines import private_apis
from medcot.engines.private_apis import NEWEST_CHECKED, OLDEST_CHECKED, PRIVATE_APIS


@pytest.mark.parametrize("api", PRIVATE_APIS, ids=lambda api: api.operator)
def test_private_function_has_the_expected_signature(api):
    schema = operator.attrgetter(api.operator)(torch.ops)._schema
    names = [argument.name for argument in schema.arguments]
    assert tuple(names[: len(api.positional)]) == api.positional
    assert set(api.keywords) <= set(names[len(api.positional) :])
    assert len(schema.returns) == api.returns
    # Whatever the code does not pass must have a default.
    rest = schema.arguments[len(api.positional) :]
    assert all(one.name in api.keywords or one.has_default_value() for one in rest)


def test_installed_torch_is_a_version_that_the_private_functions_were_checked_with():
    """After an upgrade run bench/training.py on a GPU, then widen the range."""
    installed = tuple(int(part) for part in torch.__version__.split(".")[:2])
    assert OLDEST_CHECKED <= installed <= NEWEST_CHECKED


@pytest.mark.parametrize("window", [None, 6])
def test_flash_attention_takes_the_arguments_that_are_passed(window):
    """On the meta device: shapes without kernels, so that a CPU can tell."""
    from medcot.engines.fused.packing import pack
    from medcot.engines.fused.varlen_attention import attend_varlen

    rows = pack((9, 15, 12), shared=4).to("meta")
    query = torch.empty(sum(rows.query_lengths), 4, 64, dtype=torch.bfloat16, device="meta")
    key = torch.empty(len(query), 2, 64, dtype=torch.bfloat16, device="meta")
    output, backward = attend_varlen(query, key, key, rows, window=window, for_backward=True)
    assert output.shape == query.shape
    to_query, to_key, to_value = backward(output)
    assert to_query.shape == query.shape
    assert to_key.shape == to_value.shape == (sum(rows.key_lengths), 2, 64)


def test_foreach_functions_change_their_first_argument():
    targets, sources = [torch.zeros(2), torch.zeros(3)], [torch.ones(2), torch.full((3,), 2.0)]
    private_apis.foreach_copy_(targets, sources)
    private_apis.foreach_mul_(targets, 3.0)
    assert [tensor.tolist() for tensor in targets] == [[3, 3], [6, 6, 6]]
