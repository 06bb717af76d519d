"One object for all of it: what it does is what the pieces do, what it is given may be many things, Ctrl-C keeps what was learned."
import inspect, json, os, signal, subprocess, sys, textwrap, threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from typer.testing import CliRunner

import distill
from distill import Distill, codes, fitting
from distill.api import StopRequest, progress_bar
from distill.audio import load_audio
from distill.base import fitting_base, start_from_base
from distill.cli import app
from distill.export import save_audio
from distill.model import LoadedVQModel, ModelFileError, load_model
from distill.pipeline import Clip, ClipConfig, generate_clips, stream_audio
from distill.prior import CodePrior
from distill.sampling import SamplingConfig
from distill.spectrogram import AudioSpectrogram, SpectrogramConfig
from distill.stereo import decode_stereo, encode_stereo
from distill.synthesis import synthesise, write_collection
from distill.vqvae import ConvVQVAE, get_adaptive_vqvae_config

SMALL = dict(vqvae=dict(codebook_size=16, channels=(4, 8, 16, 32), search_steps=1, search_sweeps=0), prior=dict(d_model=32, n_heads=1, n_layers=1))
QUIET = dict(progress=False)


@pytest.fixture(scope='module')
def sounds(tmp_path_factory): return write_collection(tmp_path_factory.mktemp('s')/'my sounds', n_files=8, seed=1)


@pytest.fixture(scope='module')
def d(sounds): return Distill.fit(sounds, epochs=10, seed=5, device='cpu', **QUIET, **SMALL)


def python(code, **kw):
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(code)], capture_output=True, text=True, encoding='utf-8', **kw)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- the package
def test_importing_distill_is_cheap():
    heavy = python('import sys, distill; print(*{"torch", "numpy", "matplotlib", "distill.api"} & set(sys.modules))')
    assert heavy.split() == []
    assert python('from distill import Distill; import sys; print("matplotlib.pyplot" in sys.modules)').strip() == 'False'


def test_only_what_there_is():
    assert distill.Distill is Distill and 'Distill' in dir(distill) and '__version__' in dir(distill)
    with pytest.raises(AttributeError, match='distil'): distill.distil


# --- streams
def test_a_stream_is_asked_for_a_label_as_clips_are(d):
    cfg = replace(d.loaded.prior_config, labels=('bells', 'drums'))
    torch.manual_seed(0)
    prior = CodePrior(cfg).eval()
    with torch.no_grad(): prior.embedding.label.weight.mul_(50)          # as if it had learned something about them
    prior.set_vectors(d.loaded.model.quantizer.codebooks.detach())
    asked, sampling = Distill(replace(d.loaded, prior=prior, prior_config=cfg)), SamplingConfig(top_p=0.9, seed=3)
    heard = lambda **more: torch.cat([*asked.stream(0.6, sampling=sampling, **more)])
    guided = heard(label='drums', guidance=4.0)
    assert torch.equal(guided, torch.cat([*stream_audio(asked.loaded, ClipConfig(0.6, label='drums', guidance=4.0, sampling=sampling))]))
    assert len(guided) == 28_800 and not torch.equal(guided, heard(label='drums'))
    with pytest.raises(ValueError, match='pulls towards a label'): heard(guidance=2.0)


# --- fit, save, load, info
def test_fit_is_fit_model(d, sounds):
    loaded = fitting.fit_model(sounds, epochs=10, seed=5, device='cpu', **SMALL)
    assert d.loaded.fingerprint == loaded.fingerprint
    assert d.loaded.prior_fingerprint == loaded.prior_fingerprint


def test_a_fit_goes_on(d, sounds, tmp_path):
    "It is told to stop in the second stage; what is saved then does not remove what it needs to go on"
    told, keep = [], tmp_path/'keep'
    fit = lambda **kw: Distill.fit(sounds, epochs=10, seed=5, device='cpu', checkpoints=keep, **QUIET, **SMALL, **kw)
    in_stage_2 = lambda: any(e['event']=='start' and e['stage']=='stage 2' for e in told)
    stopped = fit(on_event=told.append, should_stop=in_stage_2)
    assert told[0]['event']=='doctor' and told[0]['diagnosis']['ready'] and stopped.loaded.metadata['stopped'][1:]==['asked to']
    stopped.save(tmp_path/'a.distill', library=False)
    with pytest.raises(ValueError, match='not finished .stage 2, step 1.'): fit()
    again = fit(resume=True)
    assert again.loaded.fingerprint==d.loaded.fingerprint and again.loaded.prior_fingerprint==d.loaded.prior_fingerprint
    assert keep.exists()
    again.save(tmp_path/'a.distill', library=False)
    assert not keep.exists()
    with pytest.raises(ValueError, match='expected checkpoints'): Distill.fit(sounds, resume=True)


def test_tensorboard_without_it(sounds, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    with pytest.raises(ImportError, match='pip install tensorboard'): Distill.fit(sounds, tensorboard=tmp_path)


def test_doctor(sounds):
    found = Distill.doctor(sounds, estimate=False, **QUIET)
    assert found.ready and found.estimate is None and 'Verdict: ready' in found._repr_html_()


def test_the_doctor_takes_the_settings_of_a_fit(sounds, monkeypatch):
    import distill.doctor
    asked = {}
    def measure(collection, device, vqvae, prior, from_scratch, tell, stage_1, stage_2): asked.update(vqvae=vqvae, from_scratch=from_scratch, stage_1=stage_1)
    monkeypatch.setattr(distill.doctor, 'measure_training', measure)
    Distill.doctor(sounds, **QUIET, vqvae=dict(n_quantizers=6), from_scratch=True, stage_1=dict(batch_size=4))
    assert asked == dict(vqvae=dict(n_quantizers=6), from_scratch=True, stage_1=dict(batch_size=4))


def test_save_and_load(d, tmp_path):
    path = d.save(tmp_path/'mine.distill')
    assert path == tmp_path/'mine.distill' and d.info()['path'] == str(path)
    again = Distill.load(str(path), device='cpu')
    plain = lambda d: json.loads(json.dumps(dict(d.info(), metadata=0)))
    assert isinstance(again, Distill) and plain(again) == plain(d)
    assert torch.equal(again.generate(1, seed=3, **QUIET).wav, d.generate(1, seed=3, **QUIET).wav)
    with pytest.raises(ModelFileError, match='there is no file'): Distill.load(tmp_path/'gone.distill')
    with pytest.raises(ModelFileError, match='there is no folder'): d.save(tmp_path/'gone'/'a.distill')
    assert d.info()['path'] == str(path)


def test_info_is_json(d):
    info = json.loads(json.dumps(d.info()))
    assert info['name'] == 'my sounds' and info['files'] == 8 and info['fingerprint'] == d.loaded.fingerprint
    assert info['vqvae_config']['codebook_size'] == 16 and info['prior_config']['d_model'] == 32 and info['scores']['bits_per_code'] > 0
    assert info['parameters'] == dict(vqvae=sum(x.numel() for x in d.loaded.model.state_dict().values()),
                                      prior=sum(x.numel() for x in d.loaded.prior.state_dict().values()))


def test_repr(d):
    assert repr(d).startswith("Distill('my sounds': 8 files") and '4 levels of 16 codes' in repr(d) and 'no prior' not in repr(d)
    assert 'no prior' in repr(Distill(replace(d.loaded, prior=None, prior_config=None)))
    assert '\n' not in repr(Distill(replace(d.loaded, metadata={}))) and not hasattr(d, '_repr_html_')


# --- new sound
def test_generate_is_generate_clips(d):
    clip = d.generate(1.5, temperature=0.8, top_k=5, top_p=0.5, overlap_ms=20, seed=11, **QUIET)
    same, = generate_clips(d.loaded, ClipConfig(1.5, overlap_ms=20, sampling=SamplingConfig(temperature=0.8, top_k=5, top_p=0.5, seed=11)))
    assert isinstance(clip, Clip) and torch.equal(clip.wav, same.wav) and clip.settings == same.settings and len(clip.wav) == 72_000


def test_defaults_are_those_of_the_spec():
    given = {k: v.default for k, v in inspect.signature(Distill.generate).parameters.items()}
    assert (given['duration_s'], given['temperature'], given['top_k'], given['top_p'], given['overlap_ms']) == (10, 1, 0, 0.9, 50)
    assert inspect.signature(Distill.fit).parameters['minutes'].default == 5


@pytest.mark.parametrize('change', [dict(temperature=0.1), dict(top_k=1), dict(top_p=0.1), dict(seed=12)])
def test_every_control_arrives(d, change):
    one, other = (d.generate(1, **dict(dict(seed=11), **c), **QUIET).wav for c in ({}, change))
    assert not torch.equal(one, other)


def test_settings_and_seed_together(d):
    cfg = SamplingConfig(temperature=0.5, seed=1)
    assert d.generate(1, sampling=cfg, **QUIET).settings['sampling'] == cfg.to_dict()
    assert d.generate(1, sampling=cfg, seed=2, **QUIET).settings['sampling'] == replace(cfg, seed=2).to_dict()
    assert d.generate(1, sampling=cfg, seed=0, **QUIET).settings['sampling']['seed'] == 0
    seeds = {d.generate(0.1, **QUIET).settings['sampling']['seed'] for _ in range(3)}
    assert len(seeds) == 3


@pytest.mark.parametrize('change, words', [(dict(duration_s=-1), 'duration'), (dict(temperature=9), 'temperature'), (dict(overlap_ms=999), '200')])
def test_wrong_values(d, change, words):
    with pytest.raises(ValueError, match=words): d.generate(**dict(dict(duration_s=1), **change), **QUIET)
    with pytest.raises(ValueError, match='no prior'): Distill(replace(d.loaded, prior=None)).generate(1, **QUIET)


def test_again_with_its_prompt(d, sounds, tmp_path):
    "Given as anything that a prompt may be; another one, or none, or one that was not there, is refused."
    bell, other = (synthesise('bells', seed=i, seconds=1.) for i in (3, 4))
    clip, alone = d.generate(1.5, prompt=bell, seed=1, **QUIET), d.generate(0.5, seed=1, **QUIET)
    for name, o in ('on', clip), ('alone', alone): o.save(tmp_path/f'{name}.wav')
    again = lambda name, **more: d.again(tmp_path/f'{name}.wav.json', **QUIET, **more)
    for same in bell, bell.double().numpy(), Clip(bell): assert torch.equal(again('on', prompt=same).wav, clip.wav)
    for wrong, words in (dict(), 'give the same prompt'), (dict(prompt=other), 'this is another one'), (dict(prompt=bell[:-1]), 'this is another one'):
        with pytest.raises(ValueError, match=words): again('on', **wrong)
    with pytest.raises(ValueError, match='leave it out'): again('alone', prompt=bell)
    assert len(again('on', prompt=other, any_model=True).wav)==72_000
    with pytest.raises(ValueError, match='give the same prompt'): again('on', any_model=True)


# --- through codes
def test_what_may_stand_for_a_sound(d, sounds):
    file = next(sounds.rglob('*.flac'))
    sound = load_audio(file)
    grid = codes.encode(d.loaded, sound.wav)
    for same in file, str(file), sound, sound.wav, sound.wav.numpy(), sound.wav.double(), Clip(sound.wav):
        assert d.encode(same) == grid, type(same)
    assert np.allclose(d.reconstruct(file).wav, d.decode(grid).wav)


def test_decode_from_a_file(d, tmp_path):
    grid = d.encode(synthesise('bells', seed=3, seconds=1.))
    clip = d.decode(grid.save(tmp_path/'a.npz'))
    assert torch.equal(clip.wav, d.decode(grid).wav) and clip.settings['made_by'] == 'codes'
    with pytest.raises(codes.CodesError, match='another model'): d.decode(replace(grid, model_fingerprint='x'))
    with pytest.raises(codes.CodesError, match='there is no file'): d.decode(tmp_path/'b.npz')


def test_a_reconstruction_says_what_it_is(d, sounds, tmp_path):
    file = next(sounds.rglob('*.flac'))
    clip = d.reconstruct(file)
    assert len(clip.wav) == len(load_audio(file).wav) and clip.settings['source'] == file.name
    about = json.loads(Path(str(clip.save(tmp_path/'a.wav')) + '.json').read_text(encoding='utf-8'))
    assert about['made_by'] == 'reconstruction' and about['model_fingerprint'] == d.loaded.fingerprint


@pytest.fixture(scope='module')
def base():
    "The base model: what has learned little says the same of left and right"
    cfg = get_adaptive_vqvae_config(100, search_steps=0)
    model = ConvVQVAE(cfg).eval()
    start_from_base(model, fitting_base(cfg))
    return Distill(LoadedVQModel(model, None, AudioSpectrogram(), torch.device('cpu'), SpectrogramConfig(), cfg, None))


WIDE = 0.5*torch.stack([synthesise('bells', seed=3, seconds=0.6), synthesise('drums', seed=3, seconds=0.6)])


@pytest.mark.parametrize('common', [0, 1, 2, 4])
def test_two_channels_share_coarse_codes(base, common):
    "Those of the mono mix; at each finer level, channels differ"
    both, mix = encode_stereo(base.loaded, WIDE, common), codes.encode(base.loaded, WIDE.mean(0))
    assert mix.levels == 4 and all(torch.equal(grid.codes[..., :common], mix.codes[..., :common]) for grid in both)
    for level in range(common, 4): assert len(both.left.diff(both.right) & mix.select(levels=level)) > 0, level
    clip = base.reconstruct(WIDE, stereo=True, common=common)
    assert torch.equal(clip.wav, decode_stereo(base.loaded, both)) and clip.settings['common'] == common


def test_the_command_shares_them_too(base, tmp_path):
    file, out = save_audio(tmp_path/'two.wav', WIDE, bit_depth=24), tmp_path/'out.wav'
    run = lambda *args: CliRunner().invoke(app, ['reconstruct', str(base.save(tmp_path/'base.distill', library=False)), *map(str, args)])
    width = []
    for n in 0, 1, 4:
        done = run(file, '-o', out, '--keep-stereo', '--common', n, '--bit-depth', 24)
        heard = torch.from_numpy(sf.read(out, dtype='float32')[0].T)
        assert done.exit_code == 0 and (heard - base.reconstruct(file, stereo=True, common=n).wav).abs().max() < 1e-6, done.output
        assert json.loads(out.with_name('out.wav.json').read_text(encoding='utf-8'))['common'] == n
        width.append((heard[0] - heard[1]).abs().max())
    assert width[2] < 1e-4 and min(width[:2]) > 1e-2          # all levels in common: mono
    for options, code, words in (['--keep-stereo', '--common', 5], 1, '--common 5: expected 0 to 4'), (['--common', 1], 2, 'goes with --keep-stereo'), (['--keep-stereo', '--common', -1], 2, '--common'):
        done = run(file, '-o', tmp_path/'b.wav', *options)
        assert done.exit_code == code and words in done.stderr and not (tmp_path/'b.wav').exists()


@pytest.mark.parametrize('common', [5, -1, 1.5, '1'])
def test_so_many_levels_cannot_be_shared(d, common):
    wide = torch.stack([synthesise('bells', seed=3, seconds=0.3)]*2)
    with pytest.raises(codes.CodesError, match='expected a whole number from 0 to 4'): d.reconstruct(wide, stereo=True, common=common)
    with pytest.raises(ValueError, match='give stereo=True'): d.reconstruct(wide[0], common=common)


@pytest.mark.parametrize('sound, error, words', [
    (Clip(torch.zeros(100), 44_100), ValueError, '44100'), (torch.zeros(2, 100), ValueError, r'\(2, 100\)'), ('gone.wav', ValueError, 'no such file'),
    (torch.zeros(100).int(), ValueError, 'int32'), (np.zeros(0), ValueError, r'\(0,\)')])
def test_what_is_no_sound(d, sound, error, words):
    for f in d.encode, d.reconstruct:
        with pytest.raises(error, match=words): f(sound)


def test_how_much_is_generated_to_be_evaluated(d, sounds):
    a, b, c = (d.evaluate(sounds, **QUIET, n_clips=2, seed=seed) for seed in (0, 1, 0))
    assert a.n_clips==2 and a.memorisation!=b.memorisation and a==c and a.files==b.files
    assert d.evaluate(sounds, **QUIET, n_clips=0).generated is None


def test_evaluate(d, sounds):
    report = d.evaluate(sounds, **QUIET)
    assert [f.name for f in report.files] == d.info()['metadata']['files']['valid']


# --- progress
def test_bar(capsys):
    with progress_bar() as tell:
        for fraction, text in ((0.0, 'first'), (0.5, 'second'), (0.4, 'no step back'), (1.0, 'last'), (1.1, 'last')): tell(fraction, text)
    told = capsys.readouterr()
    assert '100%' in told.err and 'last' in told.err and told.out == ''
    with progress_bar(False) as tell: assert tell is None


def test_a_callback_takes_the_place_of_the_bar(sounds, capsys):
    said = []
    Distill.fit(sounds, epochs=1, device='cpu', progress_callback=lambda f, t: said.append(t), should_stop=lambda: True, **SMALL)
    assert said and capsys.readouterr().err == ''


# --- Ctrl-C
def test_ctrl_c_while_learning_keeps_what_was_learned(sounds):
    pressed = []
    def press(fraction, text):
        if 'step 2' in text and not pressed: pressed.append(signal.raise_signal(signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    d = Distill.fit(sounds, epochs=1000, device='cpu', progress_callback=press, **SMALL)
    assert d.loaded.metadata['steps'] == [3] and d.loaded.prior is None and 'no prior' in repr(d)
    assert signal.getsignal(signal.SIGINT) is before
    assert len(d.reconstruct(synthesise('bells', seed=1, seconds=0.5)).wav) == 24_000


def test_ctrl_c_in_the_second_stage(sounds):
    pressed = []
    def press(fraction, text):
        if 'stage 2: step 1,' in text and not pressed: pressed.append(signal.raise_signal(signal.SIGINT))
    d = Distill.fit(sounds, epochs=2, device='cpu', progress_callback=press, **SMALL)
    assert pressed and d.loaded.prior is not None and d.loaded.metadata['steps'][1] == 2
    assert len(d.generate(0.5, seed=1, **QUIET).wav) == 24_000


def test_ctrl_c_while_reading_interrupts(sounds):
    pressed = []
    def press(fraction, text):
        if not pressed: pressed.append(signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt): Distill.fit(sounds, epochs=1, device='cpu', progress_callback=press, **SMALL)


def test_the_second_ctrl_c_interrupts():
    with pytest.raises(KeyboardInterrupt), StopRequest().listening() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop() and stop.requested
        signal.raise_signal(signal.SIGINT)


def test_should_stop_of_the_caller_counts():
    assert StopRequest(lambda: True)() and not StopRequest(lambda: False)()


def test_in_a_thread_signals_are_left_alone(sounds):
    before, made = signal.getsignal(signal.SIGINT), []
    def work():
        with StopRequest().listening() as stop: made.append((stop(), signal.getsignal(signal.SIGINT)))
    thread = threading.Thread(target=work)
    thread.start(); thread.join()
    assert made == [(False, before)]


@pytest.mark.skipif(os.name == 'nt', reason='a signal to another process is a POSIX matter')
def test_ctrl_c_from_outside(sounds, tmp_path):
    "A real process, a real signal in the middle of a fit that would take ten minutes: the model is there"
    code = f'''
        import os, signal
        from distill import Distill
        def told(fraction, text):
            if 'step 2,' in text: os.kill(os.getpid(), signal.SIGINT)
        d = Distill.fit({str(sounds)!r}, minutes=10, device='cpu', progress_callback=told, **{SMALL!r})
        d.save({str(tmp_path/'m.distill')!r})
    '''
    python(code, env=dict(os.environ, OMP_NUM_THREADS='1'), timeout=120)
    assert load_model(tmp_path/'m.distill', 'cpu').metadata['steps'] == [3]
