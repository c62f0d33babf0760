"""How rows are packed, and how the rows of a step are balanced over micro-batches."""

import random

import torch
from torch.utils.data import SequentialSampler

from medcot.data.tokenization import IGNORED, prefix_length
from medcot.engines.fused.packing import (
    MIN_SHARED_PREFIX,
    BalancedSampler,
    PackedCollator,
    balance_rows,
    count_shared_tokens,
    pack,
)


def example(ids, prompt):
    return {"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]}


def alike(shared, *own, prompt=2):
    """Rows that share a prefix and are labelled after their prompts."""
    begin = list(range(100, 100 + shared))
    return [
        example(begin + [10 * index + place for place in range(count)], shared + prompt)
        for index, count in enumerate(own)
    ]


def test_a_shared_prefix_is_stored_once_and_positions_continue_after_it():
    shared = MIN_SHARED_PREFIX
    batch = PackedCollator()(alike(shared, 4, 3))
    assert batch["rows"].shared == shared
    ids = batch["input_ids"][0].tolist()
    assert ids == [*range(100, 100 + shared), 0, 1, 2, 3, 10, 11, 12]
    assert batch["position_ids"][0].tolist() == [
        *range(shared + 4), *range(shared, shared + 3)
    ]  # fmt: skip
    assert batch["targets"].tolist() == [2, 3, 12]
    before = [ids[place] for place in batch["label_positions"].tolist()]
    assert before == [1, 2, 11]


def test_keys_are_those_of_whole_rows_and_every_token_has_the_index_of_its_own():
    rows = pack((5, 4, 6), shared=2)
    assert rows.query_lengths == (5, 2, 4)
    tokens = torch.arange(sum(rows.query_lengths))
    expanded = rows.expand(tokens)
    assert expanded.tolist() == [0, 1, 2, 3, 4, 0, 1, 5, 6, 0, 1, 7, 8, 9, 10]
    assert expanded[rows.own_key_index].tolist() == tokens.tolist()
    assert rows.cu_seqlens_q.tolist() == [0, 5, 7, 11]
    assert rows.cu_seqlens_k.tolist() == [0, 5, 9, 15]


def test_the_token_before_the_first_label_stays_with_its_row():
    """A row whose prompt is the shared prefix keeps its last token."""
    rows = alike(MIN_SHARED_PREFIX + 4, 3, 3, prompt=0)
    assert count_shared_tokens(rows) == MIN_SHARED_PREFIX + 3


def test_short_prefixes_and_single_rows_are_not_shared():
    assert count_shared_tokens(alike(MIN_SHARED_PREFIX - 1, 4, 4)) == 0
    assert count_shared_tokens(alike(MIN_SHARED_PREFIX + 9, 4)[:1]) == 0
    assert PackedCollator()(alike(3, 4, 4))["rows"].key_index is None


def test_common_prefix_of_rows():
    assert prefix_length([[1, 2, 3], [1, 2, 4], [1, 2]]) == 2
    assert prefix_length([[1, 2], [1, 2]]) == 2
    assert prefix_length([[2], [1]]) == 0


def test_a_batch_moves_as_a_whole():
    moved = pack((3, 3), shared=1).to("meta")
    assert moved.cu_seqlens_q.is_meta
    assert moved.key_index.is_meta
    assert moved.key_lengths == (3, 3)


def test_micro_batches_of_a_step_have_equally_many_rows_and_similar_token_counts():
    chance = random.Random(0)
    lengths = [chance.randint(300, 1500) for _ in range(160)]
    worst = 0.0
    for start in range(0, 160, 16):
        rows = list(range(start, start + 16))
        groups = balance_rows(rows, lengths, 8)
        assert sorted(groups[0] + groups[1]) == rows
        assert [len(group) for group in groups] == [8, 8]
        one, other = (sum(lengths[row] for row in group) for group in groups)
        worst = max(worst, abs(one - other) / (one + other))
    assert worst < 0.02


def test_rows_that_fill_no_step_are_balanced_too():
    lengths = [900, 850, 800, 100, 90, 80, 70]
    assert [len(group) for group in balance_rows(range(7), lengths, 3)] == [3, 3, 1]
    assert (
        max(sum(lengths[row] for row in group) for group in balance_rows(range(7), lengths, 3))
        < 1100
    )


def test_balancing_keeps_the_rows_of_each_step_and_of_the_epoch():
    lengths = [100, 900, 200, 800, 300, 700, 400, 600, 500, 1]
    order = list(BalancedSampler(SequentialSampler(lengths), lengths, 2, 2))
    assert [sorted(order[start : start + 4]) for start in (0, 4, 8)] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9]
    ]  # fmt: skip
    assert [sum(lengths[row] for row in order[start : start + 2]) for start in (0, 2)] == [
        1000, 1000
    ]  # fmt: skip
