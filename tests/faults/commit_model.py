"""The commit of one shard as a state machine, small enough to look at every interleaving.

Two writers of one shard, who sweep or are swept; one crash, of a process or of the machine; on object stores one answer
that is lost, with the request applied, not applied, or applied at any later time. A writer that crashed is started
again by the same command. The steps are those of `feature_store.writer` and `feature_store.durable_files`.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

OBJECTS = (0, 1)
RECEIPT = 2
# What stands under a name. A power loss may undo a new name, and tears what was never synced.
ABSENT, TORN, WHOLE = "absent", "torn", "whole"
NEW_NAME, UNSYNCED = "whole, its name not synced", "its bytes not synced"
_CREATE, _LOCK, _SYNC, _RENAME, _SYNC_FOLDER = range(5)
_LOOK, _DONE = -1, 3


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What writers and sweepers do; every default is what Vitrine does, every other value a mistake.

    Attributes:
        local: a disk, or else an object store.
        receipt_last: whether the receipt is written after the objects.
        sync_file, sync_folder: whether a file is synced before its rename, and its folder after it.
        sweep_uncommitted: whether gc takes objects that no receipt names, though a writer may live.
        trust_silence: whether a PUT without an answer is taken for done.
        settle_receipts: whether a run that finds a receipt makes sure that it stays.
    """

    local: bool = True
    receipt_last: bool = True
    sync_file: bool = True
    sync_folder: bool = True
    sweep_uncommitted: bool = False
    trust_silence: bool = False
    settle_receipts: bool = True

    @property
    def order(self) -> tuple[int, ...]:
        """The names in the order in which they are written."""
        return (*OBJECTS, RECEIPT) if self.receipt_last else (RECEIPT, *OBJECTS)


@dataclass(frozen=True, kw_only=True)
class Writer:
    """Where a writer is.

    Attributes:
        place: in the order of names; looking for a receipt before it, done after it.
        step: of the file at this place.
        partial: whether its partial file stands, and whether it is locked: `none`, `open`, `locked`, `swept`.
        litter: whether a partial file of an earlier life stands.
    """

    place: int = _LOOK
    step: int = _CREATE
    partial: str = "none"
    litter: bool = False


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything, at one instant.

    Attributes:
        files: what stands under each name.
        writers: both.
        crashes, lost_answers: that may still happen.
        late: names of PUTs that may still be applied.
    """

    files: tuple[str, ...] = (ABSENT, ABSENT, ABSENT)
    writers: tuple[Writer, ...] = (Writer(), Writer())
    crashes: int = 1
    lost_answers: int = 1
    late: frozenset[int] = frozenset()

    def with_file(self, name: int, content: str) -> "State":
        """This state, but for one file."""
        return replace(self, files=tuple(content if n == name else was for n, was in enumerate(self.files)))

    def with_writer(self, which: int, writer: Writer) -> "State":
        """This state, but for one writer."""
        return replace(self, writers=tuple(writer if n == which else was for n, was in enumerate(self.writers)))

    @property
    def true(self) -> bool:
        """Whether what a receipt states is so: were it not, a row would be lost or wrong for ever."""
        whole = all(self.files[name] in (WHOLE, NEW_NAME, UNSYNCED) for name in OBJECTS)
        return whole or self.files[RECEIPT] == ABSENT

    @property
    def finished(self) -> bool:
        """Whether both writers are done and nothing is on its way."""
        return all(writer.place == _DONE for writer in self.writers) and not self.late


@dataclass(frozen=True, kw_only=True)
class Exploration:
    """What was found.

    Attributes:
        n_states: looked at.
        untrue: a state in which a receipt lies, or None.
        endings: what stands when all is done: the files, and whether litter does.
        n_stuck: states that are not finished and lead nowhere.
    """

    n_states: int
    untrue: State | None
    endings: frozenset[tuple[tuple[str, ...], bool]]
    n_stuck: int


def explore(protocol: Protocol) -> Exploration:
    """Look at every state that can be reached."""
    start = State(lost_answers=0 if protocol.local else 1)
    seen, waiting = {start}, deque([start])
    untrue, endings, n_stuck = None, set(), 0
    while waiting:
        state = waiting.popleft()
        if not state.true and untrue is None:
            untrue = state
        found = set(_next(protocol, state)) - {state}
        if state.finished:
            endings.add((state.files, any(writer.litter for writer in state.writers)))
        elif not found:
            n_stuck += 1
        waiting.extend(found - seen)
        seen |= found
    return Exploration(n_states=len(seen), untrue=untrue, endings=frozenset(endings), n_stuck=n_stuck)


def _next(protocol: Protocol, state: State) -> Iterator[State]:
    for which, writer in enumerate(state.writers):
        if writer.place == _LOOK:
            yield _look(protocol, state, which)
        elif writer.place != _DONE:
            yield from (_write if protocol.local else _put)(protocol, state, which)
    yield from _sweep(protocol, state)
    yield from (replace(state.with_file(name, WHOLE), late=state.late - {name}) for name in state.late)
    if state.crashes:
        yield from _crash(protocol, replace(state, crashes=state.crashes - 1))


def _look(protocol: Protocol, state: State, which: int) -> State:
    """Skip what is committed; a receipt counts when its objects stand in their sizes, which a torn one may have."""
    committed = ABSENT not in state.files
    swept = tuple(replace(writer, litter=False) for writer in state.writers)
    looked = replace(state, writers=swept).with_writer(which, Writer(place=_DONE if committed else 0))
    # The killed writer of a receipt may not have synced its name.
    settles = committed and protocol.settle_receipts and state.files[RECEIPT] == NEW_NAME
    return looked.with_file(RECEIPT, WHOLE) if settles else looked


def _write(protocol: Protocol, state: State, which: int) -> Iterator[State]:
    """One step of a file on a disk."""
    writer, name = state.writers[which], protocol.order[state.writers[which].place]
    if writer.step == _CREATE:
        yield state.with_writer(which, replace(writer, step=_LOCK, partial="open"))
    elif writer.step == _LOCK:
        partial = "locked" if writer.partial == "open" else writer.partial
        yield state.with_writer(which, replace(writer, step=_SYNC, partial=partial))
    elif writer.step == _SYNC:
        yield state.with_writer(which, replace(writer, step=_RENAME))
    elif writer.step == _RENAME and writer.partial == "swept":
        yield state.with_writer(which, Writer(place=writer.place, litter=writer.litter))  # written anew
    elif writer.step == _RENAME:
        # Over a whole file, an undone rename leaves a whole file.
        content = UNSYNCED if not protocol.sync_file else WHOLE if state.files[name] == WHOLE else NEW_NAME
        renamed = replace(writer, step=_SYNC_FOLDER, partial="none")
        yield state.with_file(name, content).with_writer(which, renamed)
    else:
        keep = state.files[name] != NEW_NAME or not protocol.sync_folder
        synced = state if keep else state.with_file(name, WHOLE)
        yield synced.with_writer(which, Writer(place=writer.place + 1, litter=writer.litter))


def _put(protocol: Protocol, state: State, which: int) -> Iterator[State]:
    """One PUT; without an answer it is sent again, whatever became of it."""
    writer, name = state.writers[which], protocol.order[state.writers[which].place]
    on = replace(writer, place=writer.place + 1)
    yield state.with_file(name, WHOLE).with_writer(which, on)
    if state.lost_answers:
        silent = replace(state, lost_answers=0).with_writer(which, on if protocol.trust_silence else writer)
        yield silent
        yield silent.with_file(name, WHOLE)
        yield replace(silent, late=silent.late | {name})


def _sweep(protocol: Protocol, state: State) -> Iterator[State]:
    """gc at any time: a partial file that nobody has locked; the mistaken one, objects without a receipt."""
    for which, writer in enumerate(state.writers):
        if writer.litter:
            yield state.with_writer(which, replace(writer, litter=False))
        if writer.partial == "open":
            yield state.with_writer(which, replace(writer, partial="swept"))
    if protocol.sweep_uncommitted and state.files[RECEIPT] == ABSENT:
        yield from (state.with_file(name, ABSENT) for name in OBJECTS)


def _crash(protocol: Protocol, state: State) -> Iterator[State]:
    """A process ends, or the machine does; whoever was not done is started again."""
    for which, writer in enumerate(state.writers):
        if writer.place != _DONE:
            yield state.with_writer(which, _restarted(writer))
    if protocol.local:
        off = replace(
            state, writers=tuple(writer if writer.place == _DONE else _restarted(writer) for writer in state.writers)
        )
        states = {off}
        for name, content in enumerate(state.files):
            states = {each.with_file(name, after) for each in states for after in _after_power_loss(content)}
        yield from states


def _restarted(writer: Writer) -> Writer:
    return Writer(litter=writer.litter or writer.partial in ("open", "locked"))


def _after_power_loss(content: str) -> tuple[str, ...]:
    if content == NEW_NAME:
        return (ABSENT, WHOLE)
    return (ABSENT, TORN, WHOLE) if content == UNSYNCED else (content,)
