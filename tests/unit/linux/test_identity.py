"""The host ID, which distinguishes hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from flannelpy.linux import identity

if TYPE_CHECKING:
    from pathlib import Path

MACHINE_ID = "3d1219c7c4c5404aaa1f6d2a48adfda4"


def of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine_id: str | None, boot_id: str | None) -> str:
    sources = []
    for name, text in (("machine-id", machine_id), ("boot_id", boot_id)):
        sources.append(tmp_path / name)
        if text is not None:
            sources[-1].write_text(text)
    monkeypatch.setattr(identity, "_SOURCES", tuple(sources))
    return identity.host_id()


def test_the_host_id_is_a_hash_of_the_machine_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = of(tmp_path, monkeypatch, f"{MACHINE_ID}\n", "boot")
    # echo -n 'flannelpy host id' | openssl dgst -sha256 -hmac 3d12...
    assert ours == "1e4b46aae6c8f766"
    assert ours == of(tmp_path, monkeypatch, MACHINE_ID, "another boot")
    assert ours != of(tmp_path, monkeypatch, MACHINE_ID[::-1], "boot")


@pytest.mark.parametrize("machine_id", [None, "", "\n", "uninitialized\n"])
def test_without_a_machine_id_the_boot_id_is_used(
    machine_id: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = of(tmp_path, monkeypatch, machine_id, "boot")
    assert len(ours) == 16
    assert ours != of(tmp_path, monkeypatch, machine_id, "another boot")


def test_without_machine_and_boot_id_the_host_id_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert of(tmp_path, monkeypatch, None, None) == ""
