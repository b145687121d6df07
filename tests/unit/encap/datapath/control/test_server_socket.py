"""The control socket: one process has it, and has it for as long as it lives, whatever becomes of the files."""

from __future__ import annotations

import shutil
import socket
from contextlib import closing
from pathlib import Path

import pytest

from flanneld_py.encap.datapath.control.server_socket import ControlSocket, ControlSocketError


def knock(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as agent:
        agent.connect(str(path))


@pytest.mark.parametrize("lost", [["control"], ["control.lock"], ["control", "control.lock"], ["."]])
def test_what_was_removed_is_made_again_and_still_ours_alone(tmp_path: Path, lost: list[str]) -> None:
    path = tmp_path / "run" / "control"
    with closing(ControlSocket(path)) as control_socket:
        assert not control_socket.lost()
        for name in lost:
            if name == ".":
                shutil.rmtree(path.parent)
            else:
                path.with_name(name).unlink()
        assert control_socket.lost()
        control_socket.come_back()
        assert not control_socket.lost()
        assert path.stat().st_mode & 0o777 == 0o600
        knock(path)
        connection = control_socket.accept()
        assert connection is not None
        connection.close()
        with pytest.raises(ControlSocketError, match="another data-plane process serves"):
            ControlSocket(path)
    assert not path.exists()


def test_a_place_that_another_process_took_is_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "control"
    with closing(ControlSocket(path)) as former:
        for file in tmp_path.iterdir():
            file.unlink()
        with closing(ControlSocket(path)) as latter:
            assert former.lost()
            with pytest.raises(ControlSocketError, match="another data-plane process serves"):
                former.come_back()
            assert not latter.lost()
            former.close()
            knock(path)


def test_a_place_that_cannot_be_had_now_is_had_later(tmp_path: Path) -> None:
    path = tmp_path / "control"
    with closing(ControlSocket(path)) as control_socket:
        path.unlink()
        path.mkdir()
        with pytest.raises(ControlSocketError, match="cannot listen on the control socket"):
            control_socket.come_back()
        path.rmdir()
        control_socket.come_back()
        knock(path)


def test_what_a_killed_process_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(path))
    Path(f"{path}.lock").touch()
    with closing(ControlSocket(path)) as control_socket:
        knock(path)
        assert not control_socket.lost()
