import logging

import pytest

from medcot.engines.fallbacks import Fallback, collect_fallbacks, report_fallback


def test_fallback_is_logged_once_per_run_with_its_message(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="medcot"), collect_fallbacks():
        report_fallback("no-graphs", "No CUDA graphs: three times slower.")
        report_fallback("no-graphs", "No CUDA graphs: three times slower.")
    assert [record.message for record in caplog.records] == ["No CUDA graphs: three times slower."]


def test_each_run_collects_its_own_fallbacks() -> None:
    with collect_fallbacks() as first:
        report_fallback("a", "A is slow.")
    with collect_fallbacks() as second:
        report_fallback("a", "A is slow.")
        report_fallback("b", "B is slow.")
    assert first.sorted() == [Fallback("a", "A is slow.")]
    assert [one.code for one in second.sorted()] == ["a", "b"]


def test_order_of_reports_does_not_change_the_collection() -> None:
    collected = []
    for codes in ("ab", "ba"):
        with collect_fallbacks() as found:
            for code in codes:
                report_fallback(code, f"{code} is slow.")
        collected.append(found.sorted())
    assert collected[0] == collected[1]
