"""The report of a run folder: report.md, its table and its figures."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dtp_jax.files import read_json, write_text
from dtp_jax.report.style import INK, SECOND, axes, label
from dtp_jax.train.folder import read_config
from dtp_jax.train.metrics import read_metrics
from dtp_jax.train.stages import Stages

__all__ = ['load_summaries', 'table', 'write_report']

_COLORS = (INK, SECOND, '#7a9e7e', '#8c6bb1', '#999999')


def load_summaries(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
  """The summaries of a run folder, main run first, then its finished baselines.

  Raises:
    FileNotFoundError: the main run has not finished.
  """
  workdir = pathlib.Path(workdir)
  folders = [workdir, *(workdir / 'baselines' / n for n in read_config(workdir).baselines)]
  if not (workdir / 'summary.json').exists():
    raise FileNotFoundError(f'{workdir} has no summary.json: its run has not finished.')
  return [read_json(f / 'summary.json') for f in folders if (f / 'summary.json').exists()]


def table(summaries: Sequence[dict[str, Any]]) -> str:
  """A Markdown table of runs, the dense row first."""
  unit = 'MACs' if summaries[0]['unit'] == 'macs' else summaries[0]['unit']
  rows = [
    f'| run | test accuracy | {unit}, requested | {unit}, achieved | parameters left | seconds |',
    '|---|--:|--:|--:|--:|--:|',
  ]
  for s in sorted(summaries, key=lambda s: s['row'] != 'dense'):
    share = s['achieved'] / s['total']
    rows.append(
      f'| {label(s["row"])} | {100 * s["accuracy"]:.1f} % | {s["requested"]:,} | '
      f'{s["achieved"]:,} ({100 * share:.2f} %) | {s["parameters_left"]:,} | {s["seconds"]:.0f} |'
    )
  return '\n'.join(rows)


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
  workdir = pathlib.Path(workdir)
  summaries = load_summaries(workdir)
  config, main = read_config(workdir), summaries[0]
  environment = read_json(workdir / 'environment.json')
  versions = environment['versions']
  gap = 'none' if main['gap'] is None else f'{100 * main["gap"]:+.1f} points'
  stages = ', '.join(f'{name} {main["stages"][name]}' for name in Stages._fields)
  lines = [
    f'# {config.model.name} on {config.data.name}: {label(config.method)}',
    '',
    table(summaries),
    '',
    f'Seed {main["seed"]}, one run each; accuracy is that of the last epoch on the held-out split. '
    'Baselines fork from the main run where its dense stage ends '
    f'({_percent(main["dense_accuracy"])} there) and train on under the identical recipe; their '
    'seconds do not hold the dense stage.',
    '',
    *_slim_lines(workdir),
    f'- Stages in steps: {stages}.',
    f'- Dense network: {main["parameters"]:,} parameters; budget over {main["total"]:,} '
    f'({main["unit"]}).',
    f'- Accuracy under the soft mask minus that of the hard mask when it was frozen: {gap}.',
    f'- Device: {environment["devices"]} x {environment["device"]}, {environment["cpus"]} CPUs; '
    f'Python {environment["python"]}, jax {versions["jax"]}, flax {versions["flax"]}, '
    f'optax {versions["optax"]}.',
    f'- Command: `{environment["command"]}`',
    '',
    *_figures(workdir, summaries),
  ]
  path = workdir / 'report.md'
  write_text(path, '\n'.join(lines) + '\n')
  return path


def _slim_lines(workdir):
  """The slim model beside the dense one, where channels were pruned."""
  if not (workdir / 'slim.json').exists():
    return []
  slim = read_json(workdir / 'slim.json')
  time, costs = slim['milliseconds'], slim['costs']
  rows = [
    f'| {name} | {costs["macs"][name]:,} | {costs["params"][name]:,} | '
    f'{time[name]["median"]:.2f} | {time[name]["lower"]:.2f} to {time[name]["upper"]:.2f} |'
    for name in ('dense', 'slim')
  ]
  ratio = time['dense']['median'] / time['slim']['median']
  worst = max(check['difference'] / check['scale'] for check in slim['checks']['stablehlo'])
  return [
    f'| network | MACs | parameters | ms for {slim["batch_size"]} images | quartiles |',
    '|---|--:|--:|--:|--:|',
    *rows,
    '',
    f'The slim model is {ratio:.2f} times as fast (median of interleaved repeats on this device). '
    'It lies in slim/: variables.safetensors, kept.json and StableHLO for any batch size; its '
    f'outputs differ from those of the masked network by at most {worst:.1e} of the largest.',
    '',
  ]


def _figures(workdir, summaries):
  try:
    import matplotlib
  except ImportError:
    return ["Figures were left out: matplotlib is missing (`pip install 'dtp-jax[demo]'`)."]
  matplotlib.use('agg')
  (workdir / 'figures').mkdir(exist_ok=True)
  captions = {
    'training': (_draw_training, 'Test accuracy and softness of the mask over time.'),
    'kept': (_draw_kept, 'Kept fraction of each layer.'),
    'mask': (_draw_mask, 'The mask of the largest layer: dark weights are kept.'),
    'widths': (_draw_widths, 'Channels of each group before (outline) and after.'),
  }
  left_out = {'kept', 'mask'} if summaries[0]['widths'] else {'widths'}
  captions = {name: value for name, value in captions.items() if name not in left_out}
  lines = []
  for name, (draw, caption) in captions.items():
    figure = draw(workdir, summaries)
    figure.savefig(workdir / 'figures' / f'{name}.png', dpi=150)
    lines += [f'![{caption}](figures/{name}.png)', '', caption, '']
  return lines


def _draw_training(workdir, summaries):
  figure, top = axes(figsize=(7.5, 3.8))
  records = [r for r in read_metrics(workdir) if r['kind'] == 'test']
  train = [r for r in read_metrics(workdir) if r['kind'] == 'train']
  start = 0
  for name, shade in zip(Stages._fields, ('#ffffff', '#eef2f8', '#ffffff'), strict=True):
    length = summaries[0]['stages'][name]
    if length:
      top.axvspan(start, start + length, color=shade, zorder=0, linewidth=0)
      top.text(start + length / 2, 1.02, name, transform=top.get_xaxis_transform(), ha='center')
    start += length
  steps = [r['step'] for r in records]
  (present,) = top.plot(steps, [100 * r['accuracy'] for r in records], color=INK, marker='o', ms=3)
  soft = [r for r in records if 'accuracy_hard' in r]
  handles, names = [present], ['accuracy, present mask']
  if soft:
    values = [100 * r['accuracy_hard'] for r in soft]
    (hard,) = top.plot(
      [r['step'] for r in soft], values, color=INK, ls=':', marker='o', ms=3, mfc='w'
    )
    handles, names = [*handles, hard], [*names, 'accuracy, if hardened now']
  top.set(xlabel='step', ylabel='test accuracy, %', xlim=(0, start), ylim=(0, 101))
  right = top.twinx()
  right.spines['top'].set_visible(False)
  (line,) = right.plot(
    [r['step'] for r in train], [r['softness'] for r in train], color=SECOND, lw=1
  )
  right.set(ylabel='softness S', ylim=(0, None))
  right.yaxis.label.set_color(SECOND)
  top.legend([*handles, line], [*names, 'softness'], frameon=False, loc='center right')
  return figure


def _draw_kept(workdir, summaries):
  del workdir
  rows = [s for s in summaries if s['achieved'] < s['total']] or summaries
  names = list(rows[0]['kept_per_array'])
  figure, plot = axes(figsize=(7.5, 0.5 + 0.32 * len(names) * max(1, len(rows)) ** 0.7))
  height = 0.8 / len(rows)
  for i, row in enumerate(rows):
    places = [y + (i - (len(rows) - 1) / 2) * height for y in range(len(names))]
    values = [100 * row['kept_per_array'][name] for name in names]
    color = _COLORS[i % 5]
    bars = plot.barh(places, values, height=height, color=color, label=label(row['row']))
    plot.bar_label(bars, fmt='%.1f', padding=2, fontsize=7)
  plot.set_yticks(range(len(names)), names)
  plot.invert_yaxis()
  plot.set(xlabel='kept, % of the layer')
  plot.margins(x=0.1)
  plot.legend(frameon=False)
  return figure


def _draw_widths(workdir, summaries):
  del workdir
  rows = [s for s in summaries if s['achieved'] < s['total']] or summaries
  names = list(rows[0]['widths'])
  figure, plot = axes(figsize=(7.5, 3.6))
  width = 0.8 / len(rows)
  dense = [rows[0]['widths'][name][0] for name in names]
  plot.bar(range(len(names)), dense, width=0.86, fill=False, edgecolor='#999999', label='dense')
  for i, row in enumerate(rows):
    places = [x + (i - (len(rows) - 1) / 2) * width for x in range(len(names))]
    kept = [row['widths'][name][1] for name in names]
    bars = plot.bar(places, kept, width=width, color=_COLORS[i % 5], label=label(row['row']))
    plot.bar_label(bars, fontsize=7)
  plot.set_xticks(range(len(names)), names, rotation=30, ha='right', fontsize=8)
  plot.set(ylabel='channels')
  plot.legend(frameon=False, fontsize=8)
  return figure


def _draw_mask(workdir, summaries):
  with np.load(workdir / 'masks.npz') as masks:
    name = max(masks.files, key=lambda n: masks[n].size)
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


def _percent(accuracy):
  return 'not measured' if accuracy is None else f'{100 * accuracy:.1f} %'
