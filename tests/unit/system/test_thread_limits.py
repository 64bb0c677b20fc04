"""How many threads a task's libraries start for themselves."""

from __future__ import annotations

from node_agent.system.thread_limits import followed, limited


def test_each_slot_has_its_share_of_the_cores_and_one_at_least() -> None:
    for cores, slots, share in ((8, 2, "4"), (2, 8, "1"), (7, 2, "3")):
        env = limited({"PATH": "/bin"}, cores, slots)
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
        assert [env[name] for name in names] == [share] * 4
        assert env["PATH"] == "/bin"


def test_what_is_set_already_stays_and_what_reads_it_otherwise_follows() -> None:
    env = limited({"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "5"}, 8, 8)
    assert env["OMP_NUM_THREADS"] == env["OPENBLAS_NUM_THREADS"] == "3"
    assert (env["MKL_NUM_THREADS"], env["POLARS_MAX_THREADS"]) == ("5", "1")
    assert followed({"A": "1"}) == {"A": "1"}
    assert followed({"OMP_NUM_THREADS": "2"})["OPENBLAS_NUM_THREADS"] == "2"
