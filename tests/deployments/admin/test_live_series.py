"""Of Ray's metrics, those of dead workers are left out."""

from __future__ import annotations

from deployments.admin.live_series import without_dead_workers

TEXT = b"""# HELP ray_total_lineage_bytes d
# TYPE ray_total_lineage_bytes gauge
ray_total_lineage_bytes{Component="core_worker",WorkerId="aa"} 0.0
ray_total_lineage_bytes{WorkerId="cc",Component="core_worker"} 0.0
# HELP ray_requests_total Says WorkerId="bb".
# TYPE ray_requests_total counter
ray_requests_total{Component="core_worker",WorkerId="aa"} 5.0
ray_requests_total{Component="core_worker",WorkerId="bb"} 7.0
ray_requests_total{Component="raylet",WorkerId=""} 7.0
ray_requests_total{Component="gcs",OldWorkerId="bb"} 7.0
# HELP ray_seconds s
# TYPE ray_seconds histogram
ray_seconds_bucket{WorkerId="bb",le="1.0"} 7.0
ray_seconds_count{WorkerId="cc"} 2.0
python_info{version="3"} 1.0
"""


def test_series_of_workers_that_report_no_gauge_any_more_are_left_out():
    gone = (b'ray_requests_total{Component="core_worker",WorkerId="bb"}', b'ray_seconds_bucket{WorkerId="bb"')
    kept = [line for line in TEXT.splitlines(keepends=True) if not line.startswith(gone)]
    assert len(kept) == len(TEXT.splitlines()) - 2
    assert without_dead_workers(TEXT) == b"".join(kept)
    assert without_dead_workers(without_dead_workers(TEXT)) == without_dead_workers(TEXT)


def test_everything_stays_where_no_gauge_names_a_worker():
    text = TEXT.replace(b"gauge", b"counter")
    assert without_dead_workers(text) == text
    assert without_dead_workers(b"") == b""
