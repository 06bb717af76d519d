"The model file: what goes in comes out, what is not a model is refused with its name, and nothing is ever half written."
import errno, json, os, pickle, struct, subprocess, sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

from distill import audio
from distill.model import (ModelFileError, config_from_dict, load_model, model_fingerprint, read_model_info,
                           save_model)
from distill.prior import CodePrior, PriorConfig
from distill.spectrogram import SpectrogramConfig
from distill.vqvae import ConvVQVAE, VQVAEConfig


@pytest.fixture(scope='module')
def networks():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vqvae = ConvVQVAE(VQVAEConfig(codebook_size=16, n_quantizers=2))
        vqvae(torch.randn(4, 1, 128, 96))  # the first batch fills the codebooks
        return (vqvae.eval(),
                CodePrior(PriorConfig(codebook_size=16, n_quantizers=2, d_model=32, n_layers=1, n_heads=2)).eval())


@pytest.fixture
def path(tmp_path, networks):
    return save_model(tmp_path/'a model ü.distill', *networks, training_config={'minutes': 5, 'betas': (.9, .99)},
                      metadata={'files': np.int64(83), 'score': float('nan'), 'folder': Path('sounds')})


def raw_header(path):
    with open(path, 'rb') as f: return json.loads(f.read(struct.unpack('<Q', f.read(8))[0]))


def rewrite(path, to=None, drop=(), tensors=None, **changes):
    "The model at `path` with other header strings"
    with safetensors.safe_open(path, 'pt') as f:
        about = {k: v for k, v in (f.metadata() | changes).items() if k not in drop}
    (to or path).write_bytes(safetensors.torch.save(tensors or safetensors.torch.load(path.read_bytes()), metadata=about))
    return to or path


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    for name in a: assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name].cpu()), name


# --- there and back
def test_round_trip(path, networks):
    loaded = load_model(path, 'cpu')
    for ours, theirs in zip(networks, (loaded.model, loaded.prior)):
        same_weights(ours, theirs)
        assert not theirs.training
    assert loaded.vqvae_config == networks[0].cfg and loaded.prior_config == networks[1].cfg
    assert loaded.spectrogram_config == SpectrogramConfig() and loaded.spectrogram is not None
    assert loaded.training_config == {'minutes': 5, 'betas': [.9, .99]}
    assert loaded.metadata['files'] == 83 and loaded.metadata['score'] is None and loaded.metadata['folder'] == 'sounds'
    assert loaded.device == torch.device('cpu') and loaded.path == path
    mel = torch.randn(1, 1, 128, 94, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): assert torch.equal(loaded.model(mel).indices, networks[0](mel).indices)


def test_the_header_is_as_the_specification_says(path):
    header = raw_header(path)
    about = header.pop('__metadata__')
    assert (about['format'], about['version'], about['model_type']) == ('distill_model', '2', 'vqvae')
    assert set(about) == {'format', 'version', 'model_type', 'spectrogram_config', 'vqvae_config', 'prior_config',
                          'training_config', 'metadata'}
    assert all(isinstance(o, str) for o in about.values())
    assert json.loads(about['prior_config'])['n_layers'] == 1
    assert {o.split('.')[0] for o in header} == {'vqvae', 'prior'}
    metadata = json.loads(about['metadata'], parse_constant=lambda o: pytest.fail(f'{o} is not JSON'))
    assert metadata['name'] == 'a model ü' and metadata['created'].endswith('+00:00') and metadata['library_version']


def test_without_a_prior(tmp_path, networks):
    path = save_model(tmp_path/'m.distill', networks[0])
    loaded = load_model(path, 'cpu')
    assert loaded.prior is None and loaded.prior_config is None and read_model_info(path)['prior_config'] is None
    assert read_model_info(path)['parameters']['prior'] == 0


def test_info_counts_and_does_not_read_the_weights(path, networks, monkeypatch):
    monkeypatch.setattr(safetensors.torch, 'load', lambda *a: pytest.fail('read the weights'))
    info = read_model_info(str(path))
    for part, network in zip(('vqvae', 'prior'), networks):
        assert info['parameters'][part] == sum(o.numel() for o in network.state_dict().values())
    assert info['bytes'] == path.stat().st_size and info['version'] == 2
    json.dumps(info, allow_nan=False)


def test_what_is_given_wins_and_what_is_missing_is_filled_in(tmp_path, networks):
    about = {'name': 'bells', 'created': '2020-01-01', 'library_version': 'x', 'weights_sha256': 'x'}
    got = load_model(save_model(tmp_path/'m.distill', networks[0], metadata=about), 'cpu').metadata
    assert got['name'] == 'bells' and got['created'] == '2020-01-01'
    assert got['library_version'] != 'x' and len(got['weights_sha256']) == 64  # these two are facts about this file


def test_weights_that_share_memory_are_written_out(tmp_path):
    tied = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    path = save_model(tmp_path/'m.distill', tied, vqvae_config=VQVAEConfig())
    with safetensors.safe_open(path, 'pt') as f:
        for i in (0, 1): assert torch.equal(f.get_tensor(f'vqvae.{i}.weight'), tied[0].weight)


def test_saving_again_keeps_everything(tmp_path, path):
    first = load_model(path, 'cpu')
    second = load_model(first.save(tmp_path/'b.distill'), 'cpu')
    same_weights(first.model, second.model)
    assert second.metadata == first.metadata and second.training_config == first.training_config
    assert first.save(path) == path  # over the file that it was loaded from


def test_fingerprint_names_what_the_codes_mean(tmp_path, path, networks):
    vqvae, prior = networks
    loaded = load_model(path, 'cpu')
    assert loaded.fingerprint == model_fingerprint(vqvae, SpectrogramConfig(), vqvae.cfg)
    assert load_model(save_model(tmp_path/'n.distill', vqvae, metadata={'name': 'x'}), 'cpu').fingerprint == loaded.fingerprint
    assert model_fingerprint(vqvae, SpectrogramConfig(hop_length=256), vqvae.cfg) != loaded.fingerprint
    for x in loaded.model.state_dict().values():
        if x.is_floating_point() and x.numel():
            x.flatten()[0] += 1
            assert loaded.fingerprint != model_fingerprint(vqvae, SpectrogramConfig(), vqvae.cfg)
            x.flatten()[0] -= 1
            break


def test_loading_leaves_global_random_numbers_alone(path):
    before = torch.get_rng_state()
    load_model(path, 'cpu')
    assert torch.equal(torch.get_rng_state(), before)


# --- what is refused
def zipped(path, m): torch.save({'w': torch.zeros(3)}, path)
def pickled(path, m): path.write_bytes(pickle.dumps({'w': 1}))
def legacy(path, m): torch.save({'w': torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
def text(path, m): path.write_text('{"format": "distill_model"}', encoding='utf-8')
def noise(path, m): path.write_bytes(np.random.default_rng(0).bytes(5000))
def empty(path, m): path.write_bytes(b'')
def short(path, m): path.write_bytes(b'\x10\x00\x00')
def wav(path, m): path.write_bytes(b'RIFF\x24\x00\x00\x00WAVEfmt ' + bytes(40))
def folder(path, m): path.mkdir()
def missing(path, m): pass
def foreign(path, m): safetensors.torch.save_file({'x': torch.zeros(2)}, path)
def foreign_named(path, m): safetensors.torch.save_file({'x': torch.zeros(2)}, path, {'format': 'pt'})
def half_header(path, m): path.write_bytes(m.read_bytes()[:300])
def half_data(path, m): path.write_bytes(m.read_bytes()[:-5])
def longer(path, m): path.write_bytes(m.read_bytes() + b'xx')
def bad_json(path, m): path.write_bytes(m.read_bytes().replace(b'__metadata__":', b'__metadata__";', 1))
def version_1(path, m): rewrite(m, path, version='1')
def version_10(path, m): rewrite(m, path, version='1.0')
def version_3(path, m): rewrite(m, path, version='3')
def version_less(path, m): rewrite(m, path, drop=['version'])
def version_odd(path, m): rewrite(m, path, version='two')
def version_inf(path, m): rewrite(m, path, version='inf')
def vae(path, m): rewrite(m, path, model_type='vae')
def vae_1(path, m): rewrite(m, path, model_type='vae', version='1')
def no_config(path, m): rewrite(m, path, drop=['vqvae_config'])
def odd_config(path, m): rewrite(m, path, vqvae_config='{"codebook')
def flipped(path, m):
    data = bytearray(m.read_bytes())
    data[-50] ^= 64
    path.write_bytes(data)


REFUSED = [(zipped, 'torch checkpoint'), (pickled, 'pickle'), (legacy, 'pickle'), (text, 'not a Distill model'),
           (noise, 'not a Distill model'), (empty, 'is empty'), (short, 'not a Distill model'), (wav, 'a sound'),
           (folder, 'is a folder'), (missing, 'there is no file'), (foreign, 'another program'),
           (foreign_named, 'another program'), (half_header, 'damaged.*header'), (half_data, 'damaged.*bytes'),
           (longer, 'damaged.*bytes'), (bad_json, 'damaged.*header'), (version_1, 'version 1.*fit'),
           (version_10, 'version 1.*fit'), (version_3, 'version 3.*pip install -U'), (version_less, 'damaged.*version'),
           (version_odd, 'damaged.*version'), (version_inf, 'damaged.*version'), (vae, "type 'vae'.*fit"),
           (vae_1, 'version 1.*fit'), (no_config, 'damaged.*settings'), (odd_config, 'damaged.*settings'),
           (flipped, 'damaged.*not those that were saved')]


@pytest.mark.parametrize('make, says', REFUSED, ids=[o.__name__ for o, _ in REFUSED])
def test_anything_else_is_refused_by_name(tmp_path, path, make, says):
    other = tmp_path/'other.distill'
    make(other, path)
    with pytest.raises(ModelFileError, match=says) as e: load_model(other, 'cpu')
    assert 'other.distill' in str(e.value) and '\n' not in str(e.value)
    if make is not flipped:
        with pytest.raises(ModelFileError, match=says): read_model_info(other)


def test_every_truncation_is_noticed(tmp_path, path):
    data, other = path.read_bytes(), tmp_path/'t.distill'
    for n in [*range(0, 40), *np.linspace(40, len(data) - 1, 60).astype(int)]:
        other.write_bytes(data[:n])
        with pytest.raises(ModelFileError): load_model(other, 'cpu')


def test_no_single_changed_byte_is_a_traceback(tmp_path, path):
    data, other, rng = path.read_bytes(), tmp_path/'t.distill', np.random.default_rng(0)
    header = 8 + struct.unpack('<Q', data[:8])[0]
    for at in [*range(8), *rng.integers(8, header, 150), *rng.integers(header, len(data), 10)]:
        changed = bytearray(data)
        changed[at] ^= int(rng.integers(1, 256))
        other.write_bytes(changed)
        try: load_model(other, 'cpu')  # a changed letter in a name or a date is still a model
        except ModelFileError: assert True
        else: assert 8 <= at < header


@pytest.mark.parametrize('part, cls, again', [('vqvae_config', 'VQVAEConfig', 'distill fit'), ('prior_config', 'PriorConfig', 'distill train-prior'),
                                              ('spectrogram_config', 'SpectrogramConfig', 'distill fit')])
def test_configs_must_have_exactly_their_fields(path, part, cls, again):
    config = read_model_info(path)[part]
    name = next(iter(config))
    for wrong, says in ((config | {'wings': 2}, f'does not know wings in {cls}'), ([1], f'{cls} should be'),
                        ({k: v for k, v in config.items() if k != name}, f'{path.name} was written by another.*does not find {name} in {cls}.*{again}')):
        rewrite(path, **{part: json.dumps(wrong)})
        with pytest.raises(ModelFileError, match=says): load_model(path, 'cpu')
        if part == 'prior_config': assert load_model(path, 'cpu', with_prior=False).prior is None      # stage 1 can still be used


def test_an_impossible_config_and_weights_that_do_not_fit(path, networks):
    config = asdict(networks[0].cfg)
    rewrite(path, vqvae_config=json.dumps(config | {'codebook_size': 0}))
    with pytest.raises(ModelFileError, match='impossible'): load_model(path, 'cpu')
    rewrite(path, vqvae_config=json.dumps(config | {'codebook_size': 32}))
    with pytest.raises(ModelFileError, match='do not fit') as e: load_model(path, 'cpu')
    assert '\n' not in str(e.value)


def test_weights_must_be_exactly_those_of_the_networks(path):
    whole = safetensors.torch.load(path.read_bytes())
    kinds = {(name.split('.')[0], name.split('.')[-1]): name for name in whole}  # a weight, a bias, a batch norm's count…
    lacking = [{k: x for k, x in whole.items() if k != name} for name in kinds.values()]
    for tensors in (*lacking, whole | {'vqvae.wings': torch.zeros(2)}):
        rewrite(path, tensors=tensors, metadata='{}')  # without a checksum, which would notice first
        with pytest.raises(ModelFileError, match='do not fit'): load_model(path, 'cpu')


def test_a_config_comes_back_as_it_was():
    @dataclass(frozen=True)
    class Config: sizes: tuple = ((1, 2), 3)
    assert config_from_dict(Config, json.loads(json.dumps(asdict(Config())))) == Config()


# --- writing
def files(folder): return {o.name: o.read_bytes() for o in folder.iterdir()}


@pytest.mark.parametrize('code, says', [(errno.ENOSPC, 'disk is full'), (errno.EACCES, 'not allowed'), (errno.EIO, 'cannot write')])
@pytest.mark.parametrize('step', ['fsync', 'replace'])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, path, networks, monkeypatch, code, says, step):
    before = files(tmp_path)
    def fail(*args): raise OSError(code, os.strerror(code))
    monkeypatch.setattr(audio.os, step, fail)
    with pytest.raises(ModelFileError, match=says): save_model(path, networks[0])
    assert files(tmp_path) == before


def test_an_interrupt_while_writing_leaves_the_old_file(tmp_path, path, networks, monkeypatch):
    before = files(tmp_path)
    def interrupt(*args): raise KeyboardInterrupt
    monkeypatch.setattr(audio.os, 'fsync', interrupt)
    with pytest.raises(KeyboardInterrupt): save_model(path, networks[0])
    assert files(tmp_path) == before


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs Linux')
def test_a_disk_that_is_really_full(tmp_path, networks, monkeypatch):
    import builtins
    real = builtins.open
    monkeypatch.setattr(builtins, 'open', lambda p, mode='r', *a, **k: real('/dev/full', 'wb') if 'x' in mode else real(p, mode, *a, **k))
    with pytest.raises(ModelFileError, match='disk is full'): save_model(tmp_path/'m.distill', networks[0])
    assert not files(tmp_path)


def test_where_it_cannot_be_written(tmp_path, networks):
    with pytest.raises(ModelFileError, match='create it first'): save_model(tmp_path/'no'/'m.distill', networks[0])
    with pytest.raises(ModelFileError, match='in the way'): save_model(tmp_path, networks[0])
    (tmp_path/'file').write_bytes(b'x')
    with pytest.raises(ModelFileError): save_model(tmp_path/'file'/'m.distill', networks[0])


@pytest.mark.skipif(os.name == 'nt', reason='links need rights on Windows')
def test_a_link_stays_a_link(tmp_path, networks):
    real = save_model(tmp_path/'real.distill', networks[0])
    (tmp_path/'link.distill').symlink_to(real)
    save_model(tmp_path/'link.distill', *networks)
    assert (tmp_path/'link.distill').is_symlink() and load_model(real, 'cpu').prior is not None


@pytest.mark.skipif(os.name == 'nt', reason='modes')
def test_the_file_has_the_usual_rights(tmp_path, path):
    (tmp_path/'plain').write_bytes(b'')
    assert path.stat().st_mode == (tmp_path/'plain').stat().st_mode


def test_a_file_that_may_not_be_read(path, monkeypatch):
    import builtins
    def refuse(*args, **kwargs): raise PermissionError(errno.EACCES, 'Permission denied')
    monkeypatch.setattr(builtins, 'open', refuse)
    with pytest.raises(ModelFileError, match='cannot be read: Permission denied'): read_model_info(path)


# --- elsewhere
def test_devices(path):
    assert load_model(path).device.type in ('cpu', 'cuda', 'mps')  # whatever is best here
    with pytest.raises(ValueError, match='gpu9'): load_model(path, 'gpu9')


def test_another_process_reads_the_same(path):
    code = 'import sys; from distill.model import load_model; print(load_model(sys.argv[1], "cpu").fingerprint)'
    out = subprocess.run([sys.executable, '-c', code, str(path)], capture_output=True, text=True, encoding='utf-8', check=True)
    assert out.stdout.strip() == load_model(path, 'cpu').fingerprint
