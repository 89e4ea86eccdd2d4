"""The commit protocol, every interleaving of it: receipts never lie, and all ends are one. And mistakes are found."""

import pytest

from tests.faults.commit_model import NEW_NAME, WHOLE, Protocol, explore


@pytest.mark.parametrize("local", [True, False], ids=["disk", "object store"])
def test_no_interleaving_makes_a_receipt_lie_and_all_end_in_one_store(
    local: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    found = explore(Protocol(local=local))
    with capsys.disabled():
        print(
            f"\ncommit on {'a disk' if local else 'an object store'}: {found.n_states} states, every one of them true"
        )
    assert found.untrue is None
    assert found.n_stuck == 0
    assert {files for files, _ in found.endings} == {(WHOLE, WHOLE, WHOLE)}
    assert found.n_states > 100


@pytest.mark.parametrize(
    "mistaken",
    [
        Protocol(receipt_last=False),
        Protocol(sync_file=False),
        Protocol(sync_folder=False),
        Protocol(sweep_uncommitted=True),
        Protocol(local=False, receipt_last=False),
        Protocol(local=False, sweep_uncommitted=True),
        Protocol(local=False, trust_silence=True),
    ],
    ids=lambda protocol: str(protocol).removeprefix("Protocol"),
)
def test_every_mistake_in_the_protocol_makes_a_receipt_lie_somewhere(mistaken: Protocol) -> None:
    assert explore(mistaken).untrue is not None


def test_a_run_that_only_finds_a_receipt_makes_it_stay() -> None:
    """Else what was called done could be undone by a power loss, long after the command had ended."""
    endings = {files for files, _ in explore(Protocol(settle_receipts=False)).endings}
    assert endings == {(WHOLE, WHOLE, WHOLE), (WHOLE, WHOLE, NEW_NAME)}
