"""The report of one run and its baselines: report.md in the run folder, and its figures."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dtp_jax.files import read_json, read_npz, write_bytes, write_text
from dtp_jax.markdown import Table
from dtp_jax.report.plots import png
from dtp_jax.report.rows import collect
from dtp_jax.report.style import axes, label, mark
from dtp_jax.report.tables import markdown
from dtp_jax.train.folder import read_config
from dtp_jax.train.metrics import read_metrics
from dtp_jax.train.stages import Stages

__all__ = ['table', 'write_report']

_SOFTNESS = '#d9822b'


def table(workdir: str | pathlib.Path) -> str:
  """A Markdown table of the finished runs of a folder, as in every other report.

  Raises:
    FileNotFoundError, ValueError: see `dtp_jax.report.rows.collect`.
  """
  return markdown(collect([workdir])[0])


def write_report(workdir: str | pathlib.Path) -> pathlib.Path:
  """Writes report.md and its figures into a finished run folder.

  Figures need matplotlib (extra `demo`); without it the report says that they were left out.

  Args:
    workdir: run folder.

  Returns:
    The path of report.md.

  Raises:
    FileNotFoundError: the run has not finished.
  """
  workdir = pathlib.Path(workdir).resolve()
  if not (workdir / 'summary.json').exists():
    raise FileNotFoundError(f'{workdir} has no summary.json: its run has not finished.')
  config, main = read_config(workdir), read_json(workdir / 'summary.json')
  environment = read_json(workdir / 'environment.json')
  versions = environment['versions']
  gap = 'none' if main['gap'] is None else f'{100 * main["gap"]:+.1f} points'
  stages = ', '.join(f'{name} {main["stages"][name]}' for name in Stages._fields)
  lines = [
    f'# {config.model.name} on {config.data.name}: {label(config.method)}',
    '',
    table(workdir),
    f'Seed {main["seed"]}, one run each; accuracy is that of the last epoch on the held-out split.',
    *_dense_lines(workdir, main),
    '',
    *_slim_lines(workdir),
    f'- Stages in steps: {stages}.',
    f'- Dense network: {main["parameters"]:,} parameters. Budget: {main["requested"]:,} of '
    f'{main["total"]:,} ({main["unit"]}).',
    *([f'- Widths: {main["multiples"]}.'] if main['multiples'] else []),
    *_skipped_lines(main),
    f'- Accuracy under the soft mask minus that of the hard mask when it was frozen: {gap}.',
    f'- Device: {environment["devices"]} x {environment["device"]}, {environment["cpus"]} CPUs; '
    f'Python {environment["python"]}, jax {versions["jax"]}, flax {versions["flax"]}, '
    f'optax {versions["optax"]}.',
    f'- Command: `{environment["command"]}`',
    '',
    *_figure_lines(workdir, main),
  ]
  path = workdir / 'report.md'
  write_text(path, '\n'.join(lines) + '\n')
  return path


def _dense_lines(workdir, main):
  """What the rows share, where there are several."""
  if not (workdir / 'baselines').exists() or main['dense_accuracy'] is None:
    return []
  return [
    'All rows start from the dense network where its dense stage ends '
    f'({100 * main["dense_accuracy"]:.1f} % there) and train on under the identical recipe; only '
    'the seconds of the dense row hold that stage.'
  ]


def _skipped_lines(main):
  """How many steps changed nothing, where `config.on_nan` skips them and there were any."""
  return [f'- Steps skipped, not finite: {main["skipped_steps"]}.'] if main['skipped_steps'] else []


def _slim_lines(workdir):
  """The slim model beside the dense one, where channels were pruned."""
  if not (workdir / 'slim.json').exists():
    return []
  slim = read_json(workdir / 'slim.json')
  time, costs = slim['milliseconds'], slim['costs']
  rows = tuple(
    (
      name,
      f'{costs["macs"][name]:,}',
      f'{costs["params"][name]:,}',
      f'{time[name]["median"]:.2f}',
      f'{time[name]["lower"]:.2f} to {time[name]["upper"]:.2f}',
    )
    for name in ('dense', 'slim')
  )
  timed = f'ms for {slim["batch_size"]} examples'
  ratio = time['dense']['median'] / time['slim']['median']
  worst = max(check['difference'] / check['scale'] for check in slim['checks']['stablehlo'])
  return [
    str(Table(('network', 'MACs', 'parameters', timed, 'quartiles'), rows)),
    f'The slim model is {ratio:.2f} times as fast (median of interleaved repeats on this device). '
    'It lies in slim/: variables.safetensors, kept.json and StableHLO; its outputs differ from '
    f'those of the masked network by at most {worst:.1e} of the largest.',
    *slim.get('notes', ()),  # 0.4.0 wrote none
    '',
  ]


def _figure_lines(workdir, main):
  try:
    import matplotlib  # noqa: F401
  except ImportError:
    return ["Figures were left out: matplotlib is missing (`pip install 'dtp-jax[demo]'`)."]
  summaries = [read_json(p) for p in sorted(workdir.glob('baselines/*/summary.json'))]
  training, kept = _draw_training(workdir, main), _draw_kept([main, *summaries])
  figures = {
    'training': (training, 'Test accuracy and softness of the mask over time.'),
    'kept': (kept, 'What is left of each layer.'),
  }
  if not main['widths']:
    figures['mask'] = (
      _draw_mask(workdir, main['total']),
      'The mask of the largest layer: dark weights are kept.',
    )
  (workdir / 'figures').mkdir(exist_ok=True)
  lines = []
  for name, (figure, caption) in figures.items():
    write_bytes(workdir / 'figures' / f'{name}.png', png(figure))
    lines += [f'![{caption}](figures/{name}.png)', '', caption, '']
  return lines


def _draw_training(workdir, main):
  figure, top = axes(figsize=(7.5, 3.8))
  records = _records(workdir)
  test, train = ([r for r in records if r['kind'] == kind] for kind in ('test', 'train'))
  start, color = 0, mark(main['row'])[0]
  for name, shade in zip(Stages._fields, ('#ffffff', '#eef2f8', '#ffffff'), strict=True):
    length = main['stages'][name]
    if length:
      top.axvspan(start, start + length, color=shade, zorder=0, linewidth=0)
      top.text(start + length / 2, 1.02, name, transform=top.get_xaxis_transform(), ha='center')
    start += length
  handles = []
  for field, style, name in (
    ('accuracy', {}, 'accuracy, present mask'),
    ('accuracy_hard', {'ls': ':', 'mfc': 'w'}, 'accuracy, if hardened now'),
  ):
    points = [(r['step'], 100 * r[field]) for r in test if field in r]
    if points:
      look = {'color': color, 'marker': 'o', 'ms': 3, **style}
      handles += top.plot(*zip(*points, strict=True), label=name, **look)
  top.set(xlabel='step', ylabel='test accuracy, %', ylim=(0, 101))
  top.set_xlim(min(r['step'] for r in test), start)
  right = top.twinx()
  right.spines['top'].set_visible(False)
  steps, softness = [r['step'] for r in train], [r['softness'] for r in train]
  handles += right.plot(steps, softness, color=_SOFTNESS, lw=1, label='softness')
  right.set(ylabel='softness S', ylim=(0, None))
  right.yaxis.label.set_color(_SOFTNESS)
  top.legend(handles=handles, frameon=False, loc='center right')
  return figure


def _records(workdir):
  """Metrics of the run, behind those of the dense stage it forks from."""
  own = read_metrics(workdir)
  begin = min(r['step'] for r in own)
  return [r for r in read_metrics(workdir / 'baselines' / 'dense') if r['step'] <= begin] + own


def _draw_kept(summaries: Sequence[dict[str, Any]]):
  """Bars of each layer for each pruned row: channels, the dense widths in outline, or percent."""
  rows = [s for s in summaries if s['achieved'] < s['total']] or summaries[:1]
  widths = rows[0]['widths']
  names = list(widths or rows[0]['kept_per_array'])
  figure, plot = axes(figsize=(7.5, 0.5 + 0.32 * len(names) * len(rows) ** 0.7))
  if widths:
    dense = [widths[name][0] for name in names]
    plot.barh(names, dense, height=0.86, fill=False, edgecolor='#999999', label='dense')
  height = 0.8 / len(rows)
  for i, row in enumerate(rows):
    places = [y + (i - (len(rows) - 1) / 2) * height for y in range(len(names))]
    if widths:
      values = [row['widths'][name][1] for name in names]
    else:
      values = [100 * row['kept_per_array'][name] for name in names]
    color = mark(row['row'])[0]
    bars = plot.barh(places, values, height=height, color=color, label=label(row['row']))
    plot.bar_label(bars, fmt='%d' if widths else '%.1f', padding=2, fontsize=7)
  plot.set_yticks(range(len(names)), names)
  plot.invert_yaxis()
  plot.set(xlabel='channels' if widths else 'kept, % of the layer')
  plot.margins(x=0.1)
  plot.legend(frameon=False)
  return figure


def _draw_mask(workdir, elements):
  masks = read_npz(workdir / 'masks.npz', elements * np.dtype(bool).itemsize)
  name = max(masks, key=lambda n: masks[n].size)
  mask = masks[name]
  plane = mask.reshape(-1, mask.shape[-1])
  plane = plane.T if plane.shape[0] > plane.shape[1] else plane
  figure, plot = axes(figsize=(7.5, 1.2 + 6.3 * plane.shape[0] / plane.shape[1]))
  plot.imshow(plane, cmap='Greys', interpolation='nearest', aspect='equal', vmin=0, vmax=1)
  kept = f'{np.count_nonzero(mask):,} of {mask.size:,} kept'
  plot.set_title(f'{name} {mask.shape}: {kept}', fontsize=9)
  plot.set(xticks=(), yticks=())
  plot.spines[:].set_visible(True)
  return figure
