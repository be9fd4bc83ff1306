"""The rows of the study by name."""

from experiments.method_study.runs import Row

__all__ = ['ROWS']

_L1 = {'elements': {'importance': 'l1'}, 'scope': 'layer'}


def _softs(name: str, row: Row) -> dict[str, Row]:
  return {f'{name}_soft{share}': row._replace(soft=share) for share in (0.1, 0.2, 0.4, 0.5, 0.7)}


def _scores(method: str, **options) -> dict[str, Row]:
  """A row for each optimizer of the scores."""
  return {
    f'{rule}{rate}': Row(method, options, scores=(rule, {'learning_rate': rate}))
    for rule, rate in (('adam', 0.001), ('adam', 0.0001), ('sgd', 0.1), ('sgd', 1.0), ('sgd', 10.0))
  }


_OURS = Row('transportation')
ROWS: dict[str, Row] = {
  'ours': _OURS,
  'dense': Row('dense'),
  'paper': Row('transportation', {'preset': 'paper'}),
  'paper_soft0.5': Row('transportation', {'preset': 'paper'}, soft=0.5),
  'spartan': Row('spartan'),
  'gradual': Row('gradual_magnitude'),
  'magnitude': Row('magnitude'),
  'l1_uniform': Row('magnitude', **_L1),
  'random': Row('random'),
  'random_uniform': Row('random', **_L1),
  'fisher': Row('fisher'),
  'lamp': Row('lamp'),
  'straight_through': Row('straight_through'),
  'pdp': Row('pdp'),
  'lin_d_S': Row('scheduled_spartan'),
  # Ablations and soft shares.
  **{f'ours_share{x}': Row('transportation', {'share': x}) for x in (0.0, 0.25, 0.75, 1.0)},
  **_softs('ours', _OURS),
  **_softs('spartan', Row('spartan')),
  **_softs('gradual', Row('gradual_magnitude')),
  **_softs('lin_d_S', Row('scheduled_spartan')),
  # A trained correction.
  'natural0.1': Row('corrected', {'rate': 0.1}, soft=0.5),
  'natural1': Row('corrected', {'rate': 1.0}, soft=0.5),
  'normalised0.003': Row('corrected', {'rate': 0.003, 'normalised': True}, soft=0.5),
  'normalised0.03': Row('corrected', {'rate': 0.03, 'normalised': True}, soft=0.5),
  # One option at a time.
  'handover0.1': Row('variant', {'handover': 0.1}),
  'handover0.3': Row('variant', {'handover': 0.3}),
  'decay0.98': Row('transportation', {'decay': 0.98}),
  'decay0.9': Row('transportation', {'decay': 0.9}),
  'unpriced': Row('variant', {'priced': False}),
  'power2': Row('variant', {'power': 2.0}),
  'floor0.1': Row('variant', {'floor': 0.1}),
  'floor0.03': Row('variant', {'floor': 0.03}),
  'derivative0': Row('variant', {'derivative': 0.0}),
  'derivative0.3': Row('variant', {'derivative': 0.3}),
  'ramp0.2': Row('transportation', {'ramp': 0.2}),
  'ramp0.7': Row('transportation', {'ramp': 0.7}),
  'deadline0.6': Row('transportation', {'deadline': 0.6}),
  'long_early': Row('transportation', {'deadline': 0.5, 'ramp': 0.25}, soft=0.5),
  'dense1': Row('variant', {'dense': 1.0}),
  'dense0.3': Row('variant', {'dense': 0.3}),
  'dense1_derivative0': Row('variant', {'dense': 1.0, 'derivative': 0.0}),
  'initial1': Row('variant', {'initial': 1.0, 'ramp': 0.8}),
  'start0.3': Row('variant', {'start': 0.3}),
  'spartan_dual': Row('dual_spartan'),
  **_softs('derivative0.3', Row('variant', {'derivative': 0.3})),
  **_softs('derivative0', Row('variant', {'derivative': 0.0})),
  **{
    f'{name}_soft0.5': Row('transportation', options, soft=0.5)
    for name, options in {
      'share0.0': {'share': 0.0},
      'share0.25': {'share': 0.25},
      'share0.75': {'share': 0.75},
      'share1.0': {'share': 1.0},
      'decay0.98': {'decay': 0.98},
      'ramp0.2': {'ramp': 0.2},
      'ramp0.7': {'ramp': 0.7},
      'deadline0.6': {'deadline': 0.6},
    }.items()
  },
  'both_soft0.5': Row('variant', {'derivative': 0.3, 'floor': 0.1}, soft=0.5),
  **{
    f'derivative0.3_share{x}_soft0.5': Row('variant', {'derivative': 0.3, 'share': x}, soft=0.5)
    for x in (0.0, 0.25, 0.75, 1.0)
  },
  'ours_bn': Row('transportation', elements={'importance': 'bn'}),
  'spartan_bn': Row('spartan', elements={'importance': 'bn'}),
  # Further baselines.
  'taylor': Row('taylor'),
  'taylor_wait0.3': Row('taylor', {'wait': 0.3}),
  'spartan_dual_soft0.5': Row('dual_spartan', soft=0.5),
  'fisher_wait0.3_soft0.5': Row('fisher', {'wait': 0.3}, soft=0.5),
  'taylor_wait0.3_soft0.5': Row('taylor', {'wait': 0.3}, soft=0.5),
  'greg_soft0.5': Row('greg', **_L1, soft=0.5),
  'lamp_soft0.5': Row('lamp', soft=0.5),
  'pdp_soft0.5': Row('pdp', soft=0.5),
  'greg': Row('greg', **_L1),
  'greg_global': Row('greg'),
  # Sparse training: dropped weights are 0 and return from there.
  'acdc': Row('acdc'),
  'acdc_soft0.5': Row('acdc', soft=0.5),
  **{f'acdc_cycles{c}_soft{x}': Row('acdc', {'cycles': c}, x) for c in (2, 4) for x in (0.5, 0.7)},
  'rigl': Row('rigl'),
  'rigl_soft0.5': Row('rigl', soft=0.5),
  'rigl_soft0.7': Row('rigl', soft=0.7),
  **{f'rigl_every{x}_soft0.5': Row('rigl', {'every': x}, 0.5) for x in (0.05, 0.1)},
  'rigl_decay0.9_soft0.5': Row('rigl', {'decay': 0.9}, 0.5),
  **{
    f'rigl_decay0.9_every0.1_soft{x}': Row('rigl', {'decay': 0.9, 'every': 0.1}, x)
    for x in (0.5, 0.7)
  },
  'rigl_erk_soft0.5': Row('rigl', soft=0.5, scope='erk'),
  'rigl_erk_decay0.9_every0.1_soft0.7': Row('rigl', {'decay': 0.9, 'every': 0.1}, 0.7, scope='erk'),
  # Baselines at other options.
  **{f'spartan_beta{b}': Row('spartan', {'beta': (1.0, float(b))}) for b in (5, 10, 50)},
  'spartan_beta5_50': Row('spartan', {'beta': (5.0, 50.0)}),
  **{f'spartan_beta{b}_soft0.5': Row('spartan', {'beta': (1.0, float(b))}, 0.5) for b in (10, 50)},
  **{f'gradual_ramp{r}': Row('gradual_magnitude', {'ramp': r}) for r in (0.4, 0.6, 1.0)},
  **{f'fisher_wait{w}': Row('fisher', {'wait': w}) for w in (0.3, 0.5)},
  'fisher_wait0.3_decay0.99': Row('fisher', {'wait': 0.3, 'decay': 0.99}),
  **{f'pdp_t{t}': Row('pdp', {'temperature': t}) for t in (0.03, 0.3, 1.0)},
  **{f'straight_through_{k}': r for k, r in _scores('straight_through').items()},
  **{
    f'paper_eps{e}_{rate}_{x}': Row(
      'transportation', {'preset': 'paper', 'epsilon': e}, x, ('adam', {'learning_rate': rate})
    )
    for e in (0.03, 0.1, 0.3, 1.0)
    for rate in (0.01, 0.001)
    for x in (0.5, 0.7)
  },
  **{f'paper_{k}': r for k, r in _scores('transportation', preset='paper').items()},
  **{
    f'paper_eps{e}_{k}': r
    for e in (0.1, 0.3, 3.0)
    for k, r in _scores('transportation', preset='paper', epsilon=e).items()
  },
}
