"""Wrong command lines end with a line that says what is meant, and leave no file behind."""

import functools

import pytest

from configs import mnist_lenet
from dtp_jax.data import prepare
from tests.bad_input.table import UNWRITABLE, Case, assert_refused, command, script

CONFIG = """
from configs import mnist_lenet

def get_config():
  config = mnist_lenet.get_config('runlocal')
  config.mesh.data = 1
  {}
  return config

def get_sweep(arg):
  {}
"""


OTHER = mnist_lenet.get_config()
OTHER.seed = 3


def written(get_config='', get_sweep="yield 'a', get_config()"):
  return {'config.py': CONFIG.format(get_config, get_sweep)}


def call(module, *arguments):
  """A command in the folder of its case: FOLDER in its arguments."""
  return lambda place: command(module, *(a.replace('FOLDER', str(place)) for a in arguments))


def exits(*arguments, says=(), files=None, module='experiments.train'):
  return Case(call(module, *arguments), SystemExit, says, {} if files is None else files)


train = functools.partial(exits, '--config=FOLDER/config.py', files=written())
into_run = functools.partial(train, '--workdir=FOLDER/run')
sweep = functools.partial(into_run, module='experiments.sweep')
export = functools.partial(exits, module='experiments.export')
report = functools.partial(exits, module='experiments.report')
HELP = 'Try --help.'

TRAIN = {
  'nothing': exits(says=('--config is missing', '--config=configs/mnist_mini.py', HELP)),
  'no workdir': train(says=('--workdir is missing', '--workdir=runs/mnist_mini', HELP)),
  'an empty workdir': train('--workdir=', says=('--workdir is missing', HELP)),
  'a workdir that is a file': train(
    '--workdir=FOLDER/config.py', says=('config.py is a file', 'path of a folder')
  ),
  'a workdir below a file': train(
    '--workdir=FOLDER/config.py/a', says=('config.py is a file', 'path of a folder')
  ),
  'a workdir where nothing can be written': train(
    f'--workdir={UNWRITABLE}', says=(f'workdir is {UNWRITABLE}', 'may write to')
  ),
  'a workdir of another run': into_run(
    says=('belongs to a run with another config', 'seed: 3 there, 0 asked', 'another --workdir'),
    files={**written(), 'run/config.json': OTHER.to_json_best_effort()},
  ),
  'a workdir of something else': into_run(
    says=('config.json', 'not JSON'), files={**written(), 'run/config.json': '{'}
  ),
  'no such config': exits(
    '--config=FOLDER/gone.py', '--workdir=FOLDER/run', says=('gone.py', 'No such file', HELP)
  ),
  'a config that is no Python': into_run(
    says=('invalid syntax', 'config.py', HELP), files={'config.py': 'def get_config(:'}
  ),
  'a config without get_config': into_run(
    says=('config.py', "'get_config'", HELP), files={'config.py': ''}
  ),
  'a config with a misspelt field': into_run(
    says=('config.py', '"kep"', 'Did you mean "keep"', HELP),
    files=written('config.prune.kep = 0.2'),
  ),
  'a config with a misspelt section': into_run(
    says=('config.py', '"optimiser"', 'Did you mean "optimizer"', HELP),
    files=written('config.optimiser = 3'),
  ),
  'a config of another type': into_run(
    says=("'keep'", 'a tenth', 'float', HELP), files=written("config.prune.keep = 'a tenth'")
  ),
  'a misspelt field': into_run('--config.prune.kep=0.2', says=('config.prune.kep', "mean 'keep'")),
  'a field of another type': into_run('--config.seed=abc', says=('config.seed', 'abc', HELP)),
  'a misspelt flag': into_run('--workdri=a', says=('workdri', 'workdir', HELP)),
  'a word that is no flag': into_run('runs/a', says=("'runs/a' is not a flag", HELP)),
  'a number out of range': into_run(
    '--config.data.batch_size=0', says=('data.batch_size is 0', '>= 1')
  ),
  'more than all': into_run('--config.prune.keep=2.0', says=('keep is 2.0', '[0, 1]')),
  'less than can be': into_run(
    '--config.prune.granularity=channels', '--config.prune.of=macs', '--config.prune.keep=0.00001',
    says=('cannot be met', 'Raise the budget'),
  ),
  'a misspelt method': into_run('--config.method=sprtan', says=("'sprtan'", "'spartan'")),
  'a misspelt baseline': into_run(
    "--config.baselines=('magnitde',)", says=("'magnitde'", "'magnitude'")
  ),
  'a misspelt module': into_run("--config.imports=('my_mods',)", says=("'my_mods'", 'PYTHONPATH')),
  'data that is not there': into_run(
    '--config.data.name=cifar10', '--config.data.data_dir=FOLDER/data',
    says=('cifar10 is not prepared', 'dtp_jax.data.prepare cifar10 --data_dir'),
  ),
  'weights that are not there': into_run(
    '--config.pretrained=gone.pth', says=("'gone.pth'", "pretrained=''")
  ),
  'several processes without a first': into_run(
    '--num_processes=2', says=('num_processes is 2', '--coordinator=HOST:PORT')
  ),
  'a cache of what was compiled in a file': into_run(
    '--compilation_cache=FOLDER/config.py', says=('compilation_cache is', 'config.py is a file')
  ),
  'no processes': into_run('--num_processes=0', says=('num_processes=0', HELP)),
}  # fmt: skip

SWEEP = {
  'no get_sweep': sweep(
    says=('has no function get_sweep', 'configs/first_table.py'),
    files={'config.py': 'from configs.mnist_lenet import get_config'},
  ),
  'a get_sweep without its argument': sweep(
    says=('has no function get_sweep(arg)',),
    files={'config.py': CONFIG.format('', 'pass').replace('(arg)', '()')},
  ),
  'a get_sweep that returns nothing': sweep(
    says=('0 points', 'expected some'), files=written(get_sweep='return None')
  ),
  'a sweep of numbers': sweep(
    says=('yields a (str, int)', 'expected pairs'), files=written(get_sweep="yield 'a', 3")
  ),
  'a sweep of configs without names': sweep(
    says=('expected pairs (name, config)',), files=written(get_sweep='yield get_config()')
  ),
  'a sweep of nothing': sweep(
    says=('0 points', 'expected some'), files=written(get_sweep='yield from ()')
  ),
  'two points of one name': sweep(
    says=("'a/seed0' is used twice", 'get_sweep'),
    files=written(get_sweep="yield 'a', get_config(); yield 'a', get_config()"),
  ),
  'a name that leads out of the workdir': sweep(
    says=("'../a/seed0'", 'relative path'), files=written(get_sweep="yield '../a', get_config()")
  ),
  'data that is not there': sweep(
    '--config.data.name=cifar10', '--config.data.data_dir=FOLDER/data',
    says=('cifar10 is not prepared', 'dtp_jax.data.prepare cifar10 --data_dir'),
  ),
  'a misspelt data set': sweep('--config.data.name=cifra10', says=("'cifra10'", "mean 'cifar10'")),
  'a misspelt method': sweep('--config.method=sprtan', says=("'sprtan'", "'spartan'")),
  'a budget that is none': sweep('--config.prune.keep=7.0', says=('keep is 7.0', '[0, 1]')),
  'a misspelt field': sweep('--config.prune.kep=0.2', says=('config.prune.kep', "mean 'keep'")),
  'a workdir where nothing can be written': train(
    f'--workdir={UNWRITABLE}', module='experiments.sweep',
    says=(f'workdir is {UNWRITABLE}', 'may write to'),
  ),
  'no seed': sweep('--seeds=0', says=('seeds=0', 'positive', HELP)),
  'no process': sweep('--processes=0', says=('processes=0', 'positive', HELP)),
}  # fmt: skip

EXPORT = {
  'nothing': export(says=('Give one run folder', HELP)),
  'two runs': export('FOLDER/a', 'FOLDER/b', says=('Give one run folder', HELP)),
  'no run': export('FOLDER', says=('is not a run folder', '--workdir')),
  'a run that has not finished': export(
    'FOLDER', says=('not finished',), files={'config.json': '{"data":{},"model":{},"prune":{}}'}
  ),
  'a run of single weights': export(
    'FOLDER', says=('weights', '--config.prune.granularity=channels'),
    files={'config.json': mnist_lenet.get_config().to_json_best_effort(), 'summary.json': '{}'},
  ),
  'unknown norms': export('FOLDER', '--norms=plain', says=('plain', 'refit')),
  'a misspelt flag': export('FOLDER', '--onxx', says=('onxx', 'onnx')),
  'a config that is none': export(
    'FOLDER', says=('config.json', 'not JSON'), files={'config.json': '{'}
  ),
}  # fmt: skip

REPORT = {
  'nothing': report(says=('--out=FOLDER', HELP)),
  'no run': report('--out=FOLDER/out', says=('--out=FOLDER', HELP)),
  'no place': report('FOLDER', says=('--out=FOLDER', HELP)),
  'a folder that is not there': report(
    'FOLDER/gone', '--out=FOLDER/out', says=('gone is not a folder', 'finished runs')
  ),
  'a place that is a file': report(
    'FOLDER', '--out=FOLDER/a', says=('a file', 'path of a folder'), files={'a': ''}
  ),
  'a place where nothing can be written': report(
    'FOLDER', f'--out={UNWRITABLE}', says=(f'--out is {UNWRITABLE}', 'may write to')
  ),
  'runs to be checked': report('FOLDER', '--check', says=('--check or --write alone', HELP)),
  'tables checked and written': report('--check', '--write', says=('alone', HELP)),
  'a place for what is checked': report('--check', '--out=FOLDER/out', says=('alone', HELP)),
  'a folder of something else': report(
    'FOLDER', '--out=FOLDER/out', says=('no finished run', 'summary.json')
  ),
  'a torn summary': report(
    'FOLDER', '--out=FOLDER/out',
    says=('is not a readable run', 'move it away'), files={'a/summary.json': '{"acc'},
  ),
}  # fmt: skip


def bench(name, *arguments, says=(), files=None):
  return exits(*arguments, says=says, files=files, module=f'experiments.bench.{name}')


NOT_WRITTEN = (f'--out is {UNWRITABLE}', 'may write to')
OTHER_CSV = {'a.csv': 'a,b\n1,2\n'}
BENCH = {
  'graph of a misspelt network': bench(
    'graph', '--networks=resnet125', says=("'resnet125'", "mean 'resnet152'", 'decoder24')
  ),
  'graph of no network': bench('graph', '--networks=', says=('networks', 'empty', 'resnet152')),
  'graph timed once': bench('graph', '--repeats=1', says=('repeats=1', '>= 2')),
  'a file where nothing can be written': bench(
    'graph', f'--out={UNWRITABLE}', says=('--out', str(UNWRITABLE.parent), 'may write to')
  ),
  'a folder for a file': bench('transport', '--out=FOLDER', says=('a folder', 'path of a file')),
  'slim at twice the MACs': bench('slim', '--keeps=0.5,2', says=("'2'", 'in [0, 1]')),
  'slim at no number': bench('slim', '--keeps=nan', says=("'nan'", 'in [0, 1]')),
  'slim on no image': bench('slim', '--batch_sizes=0', says=("'0'", 'integers in [1, ')),
  'slim on half an image': bench('slim', '--batch_sizes=1.5', says=("'1.5'", 'integers in [1, ')),
  'slim in an unknown runtime': bench('slim', '--runtimes=tf', says=("'tf'", 'jit, stablehlo')),
  'slim into the CSV of another program': bench(
    'slim', '--out=FOLDER/a.csv', says=('a.csv', "['a', 'b']", "'runtime'"), files=OTHER_CSV
  ),
  'slim with a file for tables': bench(
    'slim', '--tables=FOLDER/a.csv', says=('--tables', 'a.csv is a file'), files=OTHER_CSV
  ),
  'steps of a misspelt granularity': bench(
    'step', '--granularities=chanels', says=("'chanels'", "mean 'channels'")
  ),
  'steps of a misspelt method': bench('step', '--method=sprtan', says=("'sprtan'", "'spartan'")),
  'steps on no image': bench('step', '--batch_size=0', says=('batch_size=0', 'positive')),
  'transport of no element': bench('transport', '--sizes=0', says=("'0'", 'integers in [4, ')),
  'transport of odd sizes': bench('transport', '--sizes=1001', says=("'1001'", 'multiples of 4')),
  'transport of more than all': bench('transport', '--keep=2', says=('keep=2', '[0, 1]')),
  'transport of a misspelt op': bench(
    'transport', '--sizes=8', '--only=sotf_topk', says=("'sotf_topk'", "mean 'soft_topk'")
  ),
  'no main job': bench('main_job', '--runs=0', says=('runs=0', 'positive')),
  'a latency table of one width': bench(
    'latency_table', '--config=configs/mnist_mini.py', '--points=1', says=('points=1', '>= 2')
  ),
  'a latency table of no config': bench('latency_table', says=('--config is missing', HELP)),
  'JPEGs of no quality': bench(
    'streamed_data', '--config=configs/mnist_mini.py', '--quality=0', says=('quality=0', '[1, 100]')
  ),
  'a compile check of a misspelt network': exits(
    '--networks=vit_t', module='experiments.tpu.compile_check', says=("'vit_t'", "mean 'vit_s'")
  ),
  'a compile check in another CSV': exits(
    '--out=FOLDER/a.csv', module='experiments.tpu.compile_check', files=OTHER_CSV,
    says=('a.csv', "['a', 'b']", "'granularity'"),
  ),
}  # fmt: skip


def study(plan, *arguments, says=(), files=None):
  return exits(
    '--plan=FOLDER/plan.txt', '--out=FOLDER/out.csv', '--cache=FOLDER/cache', *arguments, says=says,
    module='experiments.method_study.__main__', files={'plan.txt': plan, **(files or {})},
  )  # fmt: skip


def study_script(name, *arguments, says=(), files=None):
  def run(place):
    given = [a.replace('FOLDER', str(place)) for a in arguments]
    script(f'experiments.method_study.{name}', *given)

  return Case(run, SystemExit, says, files or {})


PLAN = 'cifar_channels 0.15 ours 0\n'
DONE = 'bed,keep,row,options,seed,accuracy\n'
STUDY = {
  'a plan that is not there': study('', '--plan=FOLDER/gone.txt', says=('gone.txt', 'No such')),
  'a folder for a plan': study('', '--plan=FOLDER', says=('Is a directory',)),
  'a plan of nothing': study('# later\n', says=('no line', 'BEDS KEEPS ROWS SEEDS')),
  'a line that is too short': study(
    PLAN + 'cifar_channels 0.1 ours', says=('line 2', "'cifar_channels 0.1 ours'", '3 fields')
  ),
  'a misspelt bed': study(
    'cifra_channels 0.1 ours 0', says=('line 1', "'cifra_channels'", "mean 'cifar_channels'")
  ),
  'a misspelt row': study(
    PLAN + 'cifar_channels 0.1 ours,sprtan 0', says=('line 2', "'sprtan'", "mean 'spartan'")
  ),
  'more than all': study('cifar_channels 2 ours 0', says=('line 1', "'2'", '[0, 1]')),
  'a seed in words': study('cifar_channels 0.1 ours one', says=('line 1', "'one'", 'integers')),
  'a CSV of another program': study(
    PLAN, '--out=FOLDER/a.csv', says=('a.csv', "['a', 'b']", "'options'"), files=OTHER_CSV
  ),
  'a CSV that was cut short': study(
    PLAN, says=('out.csv', 'cut short'),
    files={'out.csv': DONE + 'cifar_channels,0.15,ours,{},0,5'},
  ),
  'a line that was cut short': study(
    PLAN, says=('out.csv', 'line 2', '6 cells'), files={'out.csv': DONE + 'cifar_channels,0.15'}
  ),
  'no CSV': study(PLAN, says=('out.csv', 'codec'), files={'out.csv': b'\xff\xfe\0'}),
  'a folder for a CSV': study(PLAN, '--out=FOLDER', says=('--out', 'a folder')),
  'a file for a cache': study(PLAN, '--cache=FOLDER/plan.txt', says=('--cache', 'is a file')),
  'a time that is none': study(PLAN, '--until=25:00', says=('25:00', 'HH:MM')),
  'a time without its zero': study(PLAN, '--until=9:00', says=('9:00', 'HH:MM')),
  'hardening of a misspelt row': exits(
    '--out=FOLDER/h.csv', '--rows=sprtan', module='experiments.method_study.hardening',
    says=("'sprtan'", "mean 'spartan'"),
  ),
  'hardening into another CSV': exits(
    '--out=FOLDER/a.csv', module='experiments.method_study.hardening', files=OTHER_CSV,
    says=('a.csv', "['a', 'b']", "'keep'"),
  ),
  'a final table of nothing': study_script(
    'final', 'FOLDER/gone.csv', '--out=FOLDER/out', says=('gone.csv', 'No such file')
  ),
  'a final table of another CSV': study_script(
    'final', 'FOLDER/a.csv', '--out=FOLDER/out', says=('a.csv', "'soft_accuracy'"), files=OTHER_CSV
  ),
  'a final table that cannot be written': study_script(
    'final', 'FOLDER/a.csv', f'--out={UNWRITABLE}', says=NOT_WRITTEN, files=OTHER_CSV
  ),
  'tables of another CSV': study_script(
    'tables', 'FOLDER/a.csv', says=('a.csv', "'accuracy'"), files=OTHER_CSV
  ),
  'tables of a row that is not there': study_script(
    'tables', 'FOLDER/a.csv', '--ours=ous', says=("'ous'", "mean 'ours'"),
    files={'a.csv': DONE + 'cifar_channels,0.15,ours,{},0,55.0\n'},
  ),
  'an accuracy in words': study_script(
    'tables', 'FOLDER/a.csv', says=("'high'",),
    files={'a.csv': DONE + 'cifar_channels,0.15,ours,{},0,high\n'},
  ),
}  # fmt: skip


def prepare_data(*arguments):
  """As `python -m dtp_jax.data.prepare` does; its messages are on stderr."""

  def run(place):
    raise SystemExit(prepare.main([a.replace('FOLDER', str(place)) for a in arguments]))

  return run


TO = '--data_dir=FOLDER'
PREPARE = {
  'nothing': (prepare_data(), 2, ('NAME', 'usage')),
  'misspelt': (prepare_data('cifra10', TO), 2, ("'cifra10'", "mean 'cifar10'")),
  'a misspelt flag': (prepare_data('mnist', '--form=a', TO), 2, ('--form=a', '--from')),
  'no folder': (prepare_data('mnist', '--from=FOLDER/raw', TO), 1, ('raw', 'Pass the folder')),
  'no files': (prepare_data('mnist', '--from=FOLDER', TO), 1, ('.gz', 'under these names')),
  'a place that is a file': (
    prepare_data('mnist', '--data_dir=FOLDER/x'),
    1,
    ('data_dir is', 'x is a file'),
  ),
  'a place where nothing can be written': (
    prepare_data('mnist', f'--data_dir={UNWRITABLE}'),
    1,
    (f'is {UNWRITABLE}', 'may write to'),
  ),
  'an account': (prepare_data('imagenet2012', TO), 1, ('image-net.org', '--from FOLDER')),
}

CASES = {
  f'{name} {what}': case
  for name, cases in {
    'train': TRAIN,
    'sweep': SWEEP,
    'export': EXPORT,
    'report': REPORT,
    'bench': BENCH,
    'study': STUDY,
  }.items()
  for what, case in cases.items()
}


@pytest.mark.parametrize('name', CASES)
def test_a_wrong_command_ends_with_what_is_meant(name, tmp_path, capsys):
  case = CASES[name]

  def call(place):
    try:
      case.call(place)
    except SystemExit as stop:  # its line, or a number after lines on stderr
      raise SystemExit(f'{stop}\n{"".join(capsys.readouterr())}') from None

  assert_refused(case._replace(call=call), tmp_path)


@pytest.mark.parametrize('name', PREPARE)
def test_a_wrong_preparation_ends_with_what_is_meant(name, tmp_path, capsys):
  call, status, words = PREPARE[name]
  assert_refused(Case(call, SystemExit, (str(status),), {'x': ''}), tmp_path)
  message = capsys.readouterr().err
  assert all(word in message for word in words), message
