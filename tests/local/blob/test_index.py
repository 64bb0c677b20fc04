"""The Blob service's core: versions, conditions, blocks, and which files are still needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from batchflow.local.blob.core.errors import BlobErrorCode, BlobRefused
from batchflow.local.blob.core.index import BlobIndex, StaleSnapshot
from batchflow.local.blob.core.model import (
    BlobKind,
    Block,
    BlockChoice,
    BlockPlan,
    Conditions,
    Content,
    ContentSettings,
    FileRange,
    Revision,
    StoredAccessPolicy,
    StoredBlob,
)

Result = TypeVar("Result")


def content(file: str, size: int = 1, kind: BlobKind = BlobKind.BLOCK) -> Content:
    """Content without anything special."""
    return Content(kind, file, size, ContentSettings(), {})


def an_index() -> BlobIndex:
    """An index with one container, `box`."""
    index = BlobIndex()
    index.create_container("box", {}, now=0.0)
    return index


def attempt(action: Callable[[], Result]) -> Result | BlobErrorCode:
    """What an action returns, or the fault with which it is refused."""
    try:
        return action()
    except BlobRefused as refused:
        return refused.fault


def fault_of(error: pytest.ExceptionInfo[BlobRefused]) -> BlobErrorCode:
    """The fault that was raised."""
    return error.value.fault


class TestConditions:
    stamp = Revision('"0x2"', 100.7)

    @pytest.mark.parametrize(
        "conditions",
        [
            Conditions(),
            Conditions(if_match='"0x2"'),
            Conditions(if_match="0x2"),
            Conditions(if_match='"0x1", "0x2"'),
            Conditions(if_match="*"),
            Conditions(if_none_match='"0x1"'),
            Conditions(if_modified_since=99.0),
            Conditions(if_unmodified_since=100.0),
            Conditions(if_none_match='"0x1"', if_modified_since=100.0),
        ],
    )
    def test_met(self, conditions: Conditions) -> None:
        """Conditions that the version meets let reads and writes through; an ETag outranks a time."""
        conditions.check_read(self.stamp)
        conditions.check_write(self.stamp)

    @pytest.mark.parametrize(
        ("conditions", "reading"),
        [
            (Conditions(if_match='"0x1"'), BlobErrorCode.CONDITION_NOT_MET),
            (Conditions(if_unmodified_since=99.0), BlobErrorCode.CONDITION_NOT_MET),
            (Conditions(if_none_match='"0x2"'), BlobErrorCode.NOT_MODIFIED),
            (Conditions(if_none_match="*"), BlobErrorCode.NOT_MODIFIED),
            (Conditions(if_modified_since=100.0), BlobErrorCode.NOT_MODIFIED),
        ],
    )
    def test_not_met(self, conditions: Conditions, reading: BlobErrorCode) -> None:
        """What is not met is 304 or 412 on reads, always 412 on writes."""
        with pytest.raises(BlobRefused) as read:
            conditions.check_read(self.stamp)
        with pytest.raises(BlobRefused) as written:
            conditions.check_write(self.stamp)
        assert (fault_of(read), fault_of(written)) == (reading, BlobErrorCode.CONDITION_NOT_MET)

    def test_where_nothing_is(self) -> None:
        """A write where nothing is passes unless it demands a version."""
        Conditions(if_none_match="*").check_write(None)
        for demanded in ("*", '"0x1"'):
            with pytest.raises(BlobRefused):
                Conditions(if_match=demanded).check_write(None)


class TestStamps:
    def test_every_change_has_an_etag_of_its_own(self) -> None:
        """ETags grow even when the clock stands still or goes back."""
        index = an_index()
        changes = [index.put_blob("box", "b", content(str(n)), now) for n, now in enumerate((5.0, 5.0, 1.0))]
        etags = [change.blob.stamp.etag for change in changes]
        assert len(set(etags)) == 3

    def test_creation_time_outlives_overwriting(self) -> None:
        """A blob's creation time stays that of its first version."""
        index = an_index()
        index.put_blob("box", "b", content("x"), now=1.0)
        index.put_blob("box", "b", content("y"), now=2.0)
        blob = index.blob("box", "b")
        assert (blob.created, blob.stamp.modified) == (1.0, 2.0)

    def test_a_snapshot_stays_as_it_was(self) -> None:
        """A reader's snapshot does not change with the blob."""
        index = an_index()
        index.put_blob("box", "b", content("x"), now=1.0)
        before = index.blob("box", "b")
        index.set_metadata("box", "b", {"a": "1"}, now=2.0)
        assert (before.content.metadata, index.blob("box", "b").content.metadata) == ({}, {"a": "1"})


class TestBlocks:
    def test_a_list_mixes_committed_and_staged(self) -> None:
        """A plan takes each block from where the list says, the latest being the staged one."""
        index = an_index()
        index.stage_block("box", "b", Block("a", 3), "f1")
        index.stage_block("box", "b", Block("b", 5), "f2")
        plan = index.plan_block_list("box", "b", [("Latest", "a"), ("Latest", "b")])
        change = index.commit_block_list("box", "b", plan, content("whole", plan.size), now=1.0)
        assert sorted(change.dropped) == ["f1", "f2"]
        index.stage_block("box", "b", Block("a", 7), "f3")
        choices: list[tuple[BlockChoice, str]] = [("Committed", "b"), ("Latest", "a"), ("Committed", "a")]
        assert index.plan_block_list("box", "b", choices).sources == (
            FileRange("whole", 3, 5),
            FileRange("f3", 0, 7),
            FileRange("whole", 0, 3),
        )

    def test_putting_a_blob_drops_staged_blocks(self) -> None:
        """Put Blob discards what was staged under the same name."""
        index = an_index()
        index.stage_block("box", "b", Block("a", 3), "f1")
        assert index.put_blob("box", "b", content("x"), now=1.0).dropped == ("f1",)
        with pytest.raises(BlobRefused) as refused:
            index.plan_block_list("box", "b", [("Latest", "a")])
        assert fault_of(refused) is BlobErrorCode.INVALID_BLOCK_LIST

    def test_ids_have_one_length(self) -> None:
        """A block whose id has another length than those before is refused."""
        index = an_index()
        index.stage_block("box", "b", Block("aaaa", 1), "f1")
        with pytest.raises(BlobRefused) as refused:
            index.stage_block("box", "b", Block("aaaaaaaa", 1), "f2")
        assert fault_of(refused) is BlobErrorCode.INVALID_BLOB_OR_BLOCK

    def test_a_creator_may_not_commit_over_a_blob(self) -> None:
        """Without the right to overwrite, an existing blob stays."""
        index = an_index()
        index.put_blob("box", "b", content("x"), now=1.0)
        with pytest.raises(BlobRefused) as refused:
            index.plan_block_list("box", "b", [], may_overwrite=False)
        assert fault_of(refused) is BlobErrorCode.UNAUTHORIZED_BLOB_OVERWRITE


class TestAppending:
    def test_a_changed_target_is_stale(self) -> None:
        """An append that was planned on an older version is planned anew."""
        index = an_index()
        index.put_blob("box", "b", content("x", 0, BlobKind.APPEND), now=1.0)
        target = index.append_target("box", "b", 3)
        index.commit_append("box", "b", target, 3, now=2.0)
        with pytest.raises(StaleSnapshot):
            index.commit_append("box", "b", target, 3, now=3.0)
        assert index.blob("box", "b").content.size == 3


class TestPolicies:
    def test_at_most_five_with_distinct_ids(self) -> None:
        """More than five policies, or two of one name, are refused."""
        index = an_index()
        for ids in ("abcdef", "aa"):
            with pytest.raises(BlobRefused):
                index.set_policies("box", [StoredAccessPolicy(name) for name in ids], now=1.0)

    def test_lookup(self) -> None:
        """A policy is found in its container as it stands now."""
        index = an_index()
        index.set_policies("box", [StoredAccessPolicy("p", "r")], now=1.0)
        assert index.policy("box", "p") == StoredAccessPolicy("p", "r")
        assert index.policy("box", "q") is None
        assert index.policy("elsewhere", "p") is None


class TestListing:
    def test_a_page_ends_between_prefixes(self) -> None:
        """A common prefix counts once, also across a page's end."""
        index = an_index()
        for name in ("a/1", "a/2", "b", "c/1"):
            index.put_blob("box", name, content(name), now=1.0)
        first = index.list_blobs("box", delimiter="/", limit=1)
        assert ([entry.name for entry in first.entries], first.next_name) == (["a/"], "b")
        rest = index.list_blobs("box", delimiter="/", start="b")
        assert ([entry.name for entry in rest.entries], rest.next_name) == (["b", "c/"], None)


class Store(RuleBasedStateMachine):
    """The index against a plain dictionary, with a disk that knows which files are there."""

    NAMES = ("a", "a/b", "b")
    IDS = ("AA==", "BB==")

    def __init__(self) -> None:
        super().__init__()
        self.index = an_index()
        self.disk: dict[str, bytes] = {}
        self.model: dict[str, bytes] = {}
        self.clock = 0.0
        self.etags: set[str] = set()

    def write(self, data: bytes) -> str:
        """A new file on the disk."""
        self.clock += 1.0
        file = f"f{len(self.etags)}-{self.clock}"
        self.disk[file] = data
        return file

    def drop(self, files: tuple[str, ...]) -> None:
        """Remove files, each of which must be there."""
        for file in files:
            del self.disk[file]

    def fresh(self, blob: StoredBlob) -> None:
        """A change has an ETag that was never seen."""
        assert blob.stamp.etag not in self.etags
        self.etags.add(blob.stamp.etag)

    @rule(name=st.sampled_from(NAMES), data=st.binary(max_size=3), create=st.booleans())
    def put(self, name: str, data: bytes, create: bool) -> None:
        """Put Blob, or only where nothing is."""
        conditions = Conditions(if_none_match="*" if create else None)
        file = self.write(data)
        put = partial(self.index.put_blob, "box", name, content(file, len(data)), self.clock, conditions)
        if create and name in self.model:
            assert attempt(put) is BlobErrorCode.BLOB_ALREADY_EXISTS
            self.drop((file,))
        else:
            change = put()
            self.model[name] = data
            self.fresh(change.blob)
            self.drop(change.dropped)

    @rule(name=st.sampled_from(NAMES), block=st.sampled_from(IDS), data=st.binary(max_size=3))
    def stage(self, name: str, block: str, data: bytes) -> None:
        """Put Block."""
        self.drop(self.index.stage_block("box", name, Block(block, len(data)), self.write(data)))

    @rule(name=st.sampled_from(NAMES), ids=st.lists(st.sampled_from(IDS), max_size=3))
    def commit(self, name: str, ids: list[str]) -> None:
        """Put Block List, the file put together from what the plan says."""
        plan = attempt(partial(self.index.plan_block_list, "box", name, [("Latest", block) for block in ids]))
        if not isinstance(plan, BlockPlan):
            assert plan is BlobErrorCode.INVALID_BLOCK_LIST
            return
        data = b"".join(self.disk[s.file][s.offset : s.offset + s.size] for s in plan.sources)
        file = self.write(data)
        change = self.index.commit_block_list("box", name, plan, content(file, plan.size), self.clock)
        self.model[name] = data
        self.fresh(change.blob)
        self.drop(change.dropped)

    @rule(name=st.sampled_from(NAMES), current=st.booleans())
    def delete(self, name: str, current: bool) -> None:
        """Delete Blob, sometimes with a version that never was."""
        conditions = Conditions(if_match=None if current else '"0xnever"')
        delete = partial(self.index.delete_blob, "box", name, conditions)
        if name not in self.model:
            assert attempt(delete) is BlobErrorCode.BLOB_NOT_FOUND
        elif not current:
            assert attempt(delete) is BlobErrorCode.CONDITION_NOT_MET
        else:
            self.drop(delete())
            del self.model[name]

    @rule()
    def recreate(self) -> None:
        """Delete the container and make it anew: not a file is left."""
        self.drop(self.index.delete_container("box"))
        assert not self.disk
        self.model.clear()
        self.index.create_container("box", {}, self.clock)

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        """Every blob has its content, a listing shows them all, no file is missing."""
        listed = self.index.list_blobs("box")
        assert [entry.name for entry in listed.entries] == sorted(self.model)
        for name, data in self.model.items():
            blob = self.index.blob("box", name)
            assert self.disk[blob.content.file] == data
            assert blob.content.size == len(data)


Store.TestCase.settings = settings(max_examples=60, stateful_step_count=25)
TestStore = Store.TestCase
