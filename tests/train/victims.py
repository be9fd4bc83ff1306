"""Programs that tests kill, forked from a server that has imported all and asked for no device."""

import atexit
import contextlib
import importlib
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback

from absl import app

from dtp_jax.train.flags import parse_flags

PATIENCE = 180  # seconds, for a job that compiles on a busy machine

context = multiprocessing.get_context('forkserver')
context.set_forkserver_preload(['tests.train.preloaded'])


def start(program, *arguments, log, devices=1):
  """Starts `python -m experiments.PROGRAM ARGUMENTS` in a process of its own.

  Args:
    program: train or sweep.
    arguments: of the command line.
    log: path of a file that takes the output.
    devices: of the CPU.
  """
  process = context.Process(target=_run, args=(program, arguments, str(log), devices))
  process.start()
  return process


def coordinator():
  """An address that is free now."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return f'127.0.0.1:{s.getsockname()[1]}'


def start_pair(workdir, *flags):
  """Starts one training run as two processes of a device each, and returns their (process, log)."""
  flags = (f'--workdir={workdir}', f'--coordinator={coordinator()}', '--num_processes=2', *flags)
  logs = [workdir.with_suffix(f'.{i}.txt') for i in range(2)]
  return [(start('train', *flags, f'--process_id={i}', log=log), log) for i, log in enumerate(logs)]


def finish(process, log, status=0, patience=PATIENCE):
  """Waits for a process and holds it to an exit status."""
  process.join(patience)
  if process.exitcode is None:
    process.kill()
  assert process.exitcode == status, log.read_text()


def kill(process, how=signal.SIGKILL):
  """Sends a signal, waits for the end and returns the exit status."""
  with contextlib.suppress(ProcessLookupError):  # it has ended
    os.kill(process.pid, how)
  process.join(PATIENCE)
  return process.exitcode


def wait_for(found, process, log):
  """Waits until `found()` is true; returns whether it was before the process ended."""
  deadline = time.monotonic() + PATIENCE
  while not found():
    if process.exitcode is not None:
      return False
    assert time.monotonic() < deadline, log.read_text()
    time.sleep(0.001)
  return True


def steps(workdir):
  """The steps of the complete checkpoints of a run."""
  folder = workdir / 'checkpoints'
  return sorted(int(p.name) for p in folder.glob('*') if p.name.isdigit())


def _run(program, arguments, log, devices):
  output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
  os.dup2(output, 1)
  os.dup2(output, 2)
  sys.stdout, sys.stderr = os.fdopen(1, 'w', buffering=1), os.fdopen(2, 'w', buffering=1)
  # XLA reads it when the first device is asked for, which nobody has done yet.
  kept = [flag for flag in os.environ['XLA_FLAGS'].split() if 'device_count' not in flag]
  count = f'--xla_force_host_platform_device_count={devices}'
  os.environ['XLA_FLAGS'] = ' '.join([*kept, count])
  status = 1
  try:
    main = importlib.import_module(f'experiments.{program}').main
    sys.argv = [program, *map(str, arguments)]  # config_flags looks for overrides there
    app.run(main, flags_parser=parse_flags)
  except SystemExit as error:
    status = error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error.code, str):
      print(error.code, file=sys.stderr)
  except BaseException:
    traceback.print_exc()
  with contextlib.suppress(Exception):
    atexit._run_exitfuncs()  # as at the end of a program: the processes of a job part there
  os._exit(status)
