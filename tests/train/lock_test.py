"""One job to a folder."""

import json
import os
import socket

import pytest

from dtp_jax.train import lock, loop
from dtp_jax.train.lock import LockedError, locked
from tests.train.conftest import tiny_config


def test_the_second_is_refused_and_told_who_holds_it(tmp_path):
  folder = tmp_path / 'new'
  with locked(folder, 'run.lock'):
    assert json.loads((folder / 'run.lock').read_text()) == {
      'host': socket.gethostname(),
      'pid': os.getpid(),
    }
    with (
      pytest.raises(LockedError, match=f'process {os.getpid()} of host') as error,
      locked(folder, 'run.lock'),
    ):
      pass
    assert str(folder) in str(error.value)
    assert (folder / 'run.lock').exists()
    with locked(folder, 'job.lock'):  # of another name: not the same lock
      pass
  assert list(folder.iterdir()) == []
  with locked(folder, 'run.lock'):  # and again
    pass


def test_it_is_let_go_where_the_work_fails(tmp_path):
  with pytest.raises(ZeroDivisionError), locked(tmp_path, 'run.lock'):
    raise ZeroDivisionError
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('content', ['{"host": "elsewhere", "pid": 17}', '{"ho'])
def test_one_that_was_left_is_taken_over_and_said_so(tmp_path, capsys, content):
  (tmp_path / 'run.lock').write_text(content)
  with locked(tmp_path, 'run.lock'):
    assert json.loads((tmp_path / 'run.lock').read_text())['pid'] == os.getpid()
  told = capsys.readouterr().err
  assert 'taken over' in told
  assert ('process 17 of host elsewhere' in told) == ('17' in content)


def test_where_a_disk_has_no_locks_work_goes_on_and_it_is_said(tmp_path, monkeypatch, capsys):
  def refuse(file, how):
    raise OSError(lock.errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(lock.fcntl, 'flock', refuse)
  with locked(tmp_path, 'run.lock'):
    pass
  assert 'No locks available' in capsys.readouterr().err


def test_a_folder_at_work_is_not_trained_in(tmp_path):
  with locked(tmp_path, 'run.lock'), pytest.raises(LockedError):
    loop.train_and_evaluate(tiny_config(), tmp_path)
  assert list(tmp_path.iterdir()) == []
