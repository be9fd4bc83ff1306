"""ImageNet: prepared from archives in its format, and a whole run on it."""

import json
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from configs import mnist_lenet
from dtp_jax.data import archives, builders, load, prepare
from dtp_jax.data.streamed import Streamed
from dtp_jax.train import loop
from dtp_jax.train.metrics import read_metrics
from tests.data import imagenet


@pytest.fixture
def official(tmp_path, monkeypatch):
  folder = tmp_path / 'archives'
  imagenet.archives(folder)
  imagenet.stand_in(folder, monkeypatch)
  return folder


def test_plain_tfds_reads_the_bytes_as_they_were(imagenet2012):
  folder, files = imagenet2012
  names = tfds.builder('imagenet2012', data_dir=folder).info.features['label'].names
  raw = {'image': tfds.decode.SkipDecoding()}
  splits = tfds.data_source('imagenet2012', data_dir=folder, decoders=raw)
  assert set(splits) == {'train', 'validation'}
  for split, records in splits.items():
    found = {record['file_name'].decode(): record['image'] for record in records}
    assert list(found) == list(files[split])
    assert found == files[split]
  synsets = [r['file_name'].decode().partition('_')[0] for r in splits['train']]
  assert [names[r['label']] for r in splits['train']] == synsets
  official = tfds.core.tfds_path('datasets/imagenet2012/validation_labels.txt').read_text()
  labels = [names[r['label']] for r in splits['validation']]
  assert labels == official.split()[: len(labels)]
  assert 'tensorflow' not in sys.modules


def test_shards_hold_whole_synsets_and_the_record_names_the_archives(imagenet2012):
  status = prepare.status('imagenet2012', imagenet2012[0])
  assert status.verified
  assert len(list(status.path.glob('*train*'))) == 2  # five synsets, four a shard
  record = json.loads((status.path / builders.PROVENANCE).read_text())
  assert [f['file'] for f in record['files']] == [
    'ILSVRC2012_img_train.tar',
    'ILSVRC2012_img_val.tar',
  ]


def test_the_official_archives_are_those_that_tfds_publishes():
  train, validation = builders.Imagenet2012.archives()
  assert (train.filename, train.size) == ('ILSVRC2012_img_train.tar', 147_897_477_120)
  assert (validation.filename, validation.size) == ('ILSVRC2012_img_val.tar', 6_744_924_160)
  assert all(len(archive.sha256) == 64 for archive in (train, validation))


def test_without_a_folder_it_says_what_to_get_and_where_to_put_it(tmp_path, capsys):
  assert prepare.main(['imagenet2012', '--data_dir', str(tmp_path / 'tfds')]) == 1
  message = capsys.readouterr().err
  for part in ('account', 'ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar', '--from FOLDER'):
    assert part in message
  assert not (tmp_path / 'tfds').exists()


def test_a_missing_archive_is_named_alone(official, tmp_path):
  (official / 'ILSVRC2012_img_val.tar').unlink()
  with pytest.raises(FileNotFoundError, match='ILSVRC2012_img_val') as error:
    prepare.prepare('imagenet2012', official, tmp_path / 'tfds')
  assert 'train' not in str(error.value).partition('lacks')[2]


def test_wrong_checksum_is_refused_and_raw_files_are_not_offered(official, tmp_path):
  path = official / 'ILSVRC2012_img_train.tar'
  path.write_bytes(path.read_bytes()[:-1] + b'x')
  with pytest.raises(archives.ChecksumError, match='not the official') as error:
    prepare.prepare('imagenet2012', official, tmp_path / 'tfds')
  assert 'unpack' not in str(error.value)
  assert not (tmp_path / 'tfds').exists()


def test_too_few_images_are_refused_and_leave_nothing(official, tmp_path, monkeypatch):
  imagenet.stand_in(official, monkeypatch, {'train': 41, 'validation': 10})
  with pytest.raises(ValueError, match=r'40 images in its train split, the official one 41'):
    prepare.prepare('imagenet2012', official, tmp_path / 'tfds')
  assert list((tmp_path / 'tfds').iterdir()) == []


def test_a_folder_that_is_no_synset_is_refused_and_leaves_nothing(official, tmp_path, monkeypatch):
  content = imagenet.tar({'n00000000_1.JPEG': imagenet.encoded(0)})
  archive = imagenet.tar({'n00000000.tar': content})
  (official / 'ILSVRC2012_img_train.tar').write_bytes(archive)
  imagenet.stand_in(official, monkeypatch)
  with pytest.raises(ValueError, match=r"'n00000000.tar', expected SYNSET.tar"):
    prepare.prepare('imagenet2012', official, tmp_path / 'tfds')
  assert list((tmp_path / 'tfds').iterdir()) == []


def test_it_answers_what_a_set_in_memory_does(imagenet2012):
  config = {
    'name': 'imagenet2012',
    'data_dir': str(imagenet2012[0]),
    'image_size': 24,
    'resize': 28,
  }
  data = load(config)
  assert (data.name, data.num_classes, data.examples) == ('imagenet2012', 1000, 40)
  assert (data.image_shape, data.verified) == ((24, 24, 3), True)
  assert data.sample(3).shape == (3, 24, 24, 3)
  assert data.sample(100).shape == (10, 24, 24, 3)
  with pytest.raises(
    ValueError, match=r'data\.validation is 5, expected 0: imagenet2012 has one held-out split'
  ):
    load(config | {'validation': 5})


def test_unprepared_it_names_the_command(tmp_path):
  with pytest.raises(FileNotFoundError, match='prepare imagenet2012'):
    load({'name': 'imagenet2012', 'data_dir': tmp_path})


def _config(folder):
  """Three steps a stage of a small ResNet on 40 images."""
  config = mnist_lenet.get_config()
  config.model = {'name': 'resnet', 'depth': 18, 'width': 4, 'blocks': (1,)}
  config.data.update({'name': 'imagenet2012', 'data_dir': str(folder), 'batch_size': 8})
  config.data.update({'image_size': 32, 'resize': 36, 'threads': 2, 'prefetch': 2})
  config.data.update({'eval_batch_size': 4, 'crop_padding': 0, 'flip': True})
  config.stages.dense = config.stages.soft = config.stages.hard = 0.6
  config.eval_every, config.log_every = 0.4, 2
  config.prune.keep = 0.5
  return config


@pytest.fixture(scope='module')
def whole(imagenet2012, tmp_path_factory):
  """(run folder, summary) of a whole run of the loop."""
  workdir = tmp_path_factory.mktemp('whole')
  return workdir, loop.train_and_evaluate(_config(imagenet2012[0]), workdir)


@pytest.mark.once
def test_the_loop_trains_on_streamed_images_and_meets_the_budget(whole):
  workdir, summary = whole
  assert summary['achieved'] == summary['requested'] == round(0.5 * summary['total'])
  steps = [r['step'] for r in read_metrics(workdir) if r['kind'] == 'train']
  assert steps == list(range(1, sum(summary['stages'].values()) + 1))


@pytest.mark.slow
def test_a_resumed_run_equals_the_uninterrupted_one(whole, imagenet2012, tmp_path, monkeypatch):
  config, stop = _config(imagenet2012[0]), 5
  train_batches = Streamed.train_batches

  def interrupted(self, size, *, seed, step=0):
    for number, arguments in enumerate(train_batches(self, size, seed=seed, step=step), step):
      if number == stop:
        raise KeyboardInterrupt
      yield arguments

  monkeypatch.setattr(Streamed, 'train_batches', interrupted)
  with pytest.raises(KeyboardInterrupt):
    loop.train_and_evaluate(config, tmp_path / 'halved')
  monkeypatch.undo()
  loop.train_and_evaluate(config, tmp_path / 'halved')
  assert read_metrics(tmp_path / 'halved') == read_metrics(whole[0])
  with (
    np.load(whole[0] / 'pruned.npz') as ours,
    np.load(tmp_path / 'halved' / 'pruned.npz') as theirs,
  ):
    assert set(ours) == set(theirs)
    for name in ours:
      np.testing.assert_array_equal(ours[name], theirs[name])
  shutil.rmtree(tmp_path / 'halved')
