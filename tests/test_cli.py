"The command line, doing what it is for: every command on a tiny collection, in this process or in one of its own."
import html, inspect, json, os, shutil, signal, subprocess, sys, tempfile, time
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
import torch
from typer.testing import CliRunner

import distill.cli as cli

ROOT = Path(__file__).resolve().parent.parent
ENV = dict(os.environ, PYTHONPATH=str(ROOT), PYTHONUTF8='1', OMP_NUM_THREADS='1')
COMMANDS = 'demo doctor fit train train-prior pretrain generate encode decode edit rewrite vary morph paste join diff reconstruct evaluate info bench'.split()
PRESETS = 'list', 'save', 'remove'
SMALL = dict(vqvae=dict(codebook_size=16, channels=(4, 8, 8, 16), search_steps=1, search_sweeps=0), prior=dict(d_model=32, n_heads=2, n_layers=1))


def run(*args):
    "Runs a command in this process."
    return CliRunner().invoke(cli.app, [str(a) for a in args], prog_name='distill')


def process(*args, **kw):
    "Runs a command in a process of its own."
    return subprocess.run([sys.executable, '-m', 'distill.cli', *map(str, args)], capture_output=True, text=True,
                          encoding='utf-8', env=ENV, timeout=120, **kw)


def report(*args):
    "Runs a command that must succeed with --json; what it printed, which is one object and nothing else."
    done = run(*args, '--json')
    assert done.exit_code==0, done.stderr
    assert done.stdout.count('\n')==1
    return json.loads(done.stdout)


@lru_cache
def workshop():
    "A folder with a few short sounds and a very small model of them, made once for all tests; read only."
    from distill.fitting import fit_model
    from distill.synthesis import write_collection
    keep = tempfile.TemporaryDirectory()
    folder = Path(keep.name)
    write_collection(folder/'sounds', n_files=6, seed=3)
    for f in (folder/'sounds').rglob('*.flac'):    # short: they are learned again and again here
        wav, rate = sf.read(f)
        sf.write(f, wav[:24_000], rate)
    model = fit_model(folder/'sounds', epochs=1, device='cpu', **SMALL).save(folder/'small.distill')
    return SimpleNamespace(keep=keep, sounds=folder/'sounds', model=model, one=next((folder/'sounds').rglob('*.flac')))


@pytest.fixture
def w(): return workshop()


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    "What is learned in this process is small."
    import distill.fitting as fitting
    import distill.doctor as doctor
    def small(f, parts, *args, **kw):
        given = inspect.signature(f).bind_partial(*args, **kw).arguments
        return f(**given | {part: SMALL[part] | (given.get(part) or {}) for part in parts})
    both = ['vqvae', 'prior']
    for module, name, parts in (fitting, 'fit_model', both), (fitting, 'fit_codes', ['vqvae']), (fitting, 'fit_prior', ['prior']), (doctor, 'doctor', both):
        monkeypatch.setattr(module, name, partial(small, getattr(module, name), parts))


@contextmanager
def signals_at(number, when, times=1, quiet=False):
    "Progress that sends this process a signal (or several) as soon as its text and fraction are as wanted."
    left = times
    def tell(fraction, text):
        nonlocal left
        while left and when(fraction, text):
            left -= 1
            signal.raise_signal(number)
    yield tell


@contextmanager
def watched(number, when, times=1, minutes=None, quiet=False):
    "The same, of a training."
    with signals_at(number, when, times) as tell: yield tell, None


# --- help
def test_help_is_fast_and_imports_nothing_heavy():
    code = ('import sys\nfrom distill.cli import app\ntry: app(["--help"])\nexcept SystemExit: pass\n'
            'print(*{"torch", "numpy", "soundfile", "soxr", "matplotlib", "accelerate"} & set(sys.modules), file=sys.stderr)')
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, encoding='utf-8', env=ENV)
        seconds.append(time.perf_counter() - started)
        assert done.returncode==0 and done.stderr.strip()==''
        if seconds[-1]<0.5: break
    assert min(seconds)<0.5


def test_help_names_every_command_demo_first():
    text = run('--help').stdout
    places = [text.index(f' {c} ') for c in [*COMMANDS, 'presets']]
    assert min(places)==places[0]


@pytest.mark.parametrize('name', COMMANDS)
def test_every_command_has_help_and_json(name):
    done = run(name, '--help')
    assert done.exit_code==0 and '--json' in done.stdout


@pytest.mark.parametrize('name', PRESETS)
def test_presets_have_help_and_json(name):
    done = run('presets', name, '--help')
    assert done.exit_code==0 and '--json' in done.stdout


def test_python_m_distill():
    done = subprocess.run([sys.executable, '-m', 'distill', '--version'], capture_output=True, text=True, encoding='utf-8', env=ENV)
    assert done.returncode==0 and done.stdout.startswith('distill ')


def test_version():
    from distill import __version__
    assert run('--version').stdout.strip()==f'distill {__version__}'


# --- doctor
def test_doctor_tells_of_every_file(w, tmp_path):
    (tmp_path/'text.wav').write_text('no sound', encoding='utf-8')
    sf.write(tmp_path/'silence.wav', np.zeros(9000), 48_000)
    for i in range(3): sf.write(tmp_path/f'tone{i}.wav', 0.5*np.sin(np.arange(48_000)*(0.05 + 0.01*i)), 48_000)
    about = report('doctor', tmp_path)
    reasons = {f['name']: f['reason'] for f in about['files']}
    assert 'silent' in reasons['silence.wav'] and 'not a sound' in reasons['text.wav'] and reasons['tone0.wav']==''
    assert (about['used'], about['found'], about['ready'], about['seconds'])==(3, 5, True, 3.0)
    assert about['tier']['codebook_size']==64 and 'little sound' in about['verdict']
    assert about['training']['stage_1']['step']>0
    text = run('doctor', tmp_path).stdout
    for words in 'NOT USED', 'silence.wav', 'not a sound file', '3 of 5 files', '64 codes', 'Verdict: ready', 'on this machine (', 'epochs would take': assert words in text
    quick = report('doctor', tmp_path, '--quick')
    assert quick['training'] is None and quick['minutes']==quick['tier']['minutes']==3


# --- learning
def test_fit_makes_a_model_and_says_how_it_went(w, tmp_path):
    done = run('fit', w.sounds, '-o', tmp_path/'mine', '--epochs', 8)
    assert done.exit_code==0, done.stderr
    for words in 'Files    6 of 6', 'Likeness', 'nats', 'Codes ', 'bits per code', 'Health', 'mine.distill', 'distill generate':
        assert words in done.stdout
    assert 'stage 1' in done.stderr and 'stage 2' in done.stderr and 'stage 1' not in done.stdout
    about = report('info', tmp_path/'mine.distill')
    assert about['metadata']['name']=='sounds' and about['prior_config'] and len(about['metadata']['files']['valid'])==1
    assert 'Stage 2' in run('info', tmp_path/'mine.distill').stdout


def test_fit_json(w, tmp_path):
    about = report('fit', w.sounds, '-o', tmp_path/'a.distill', '--minutes', 0.01, '--seed', 5, '--device', 'cpu')
    assert Path(about['model']).exists() and about['device']=='cpu' and about['files']['used']==6
    assert {'log_mel_l1', 'codes_used', 'bits_per_code', 'unigram_bits_per_code'} <= about['scores'].keys()
    assert report('info', tmp_path/'a.distill')['training_config']['seed']==5


def test_a_report_says_what_the_library_calls_the_model(w, tmp_path, monkeypatch):
    monkeypatch.setenv('DISTILL_HOME', str(tmp_path/'home'))
    for name in 'a', 'b': (tmp_path/name).mkdir()
    fit = 'fit', w.sounds, '--epochs', 1, '-o'
    assert report(*fit, tmp_path/'a'/'mine')['library']=='mine'
    assert "Library  it is called 'mine 2' there" in run(*fit, tmp_path/'b'/'mine').stdout and 'Library' not in run(*fit, tmp_path/'a'/'mine').stdout
    assert report('train', w.sounds, '-o', tmp_path/'b'/'mine', '--epochs', 1)['library']=='mine 2'
    assert report('train-prior', w.sounds, tmp_path/'b'/'mine', '--epochs', 1)['library']=='mine 2'
    assert report(*fit, tmp_path/'b'/'mine', '--no-library')['library'] is None
    monkeypatch.chdir(tmp_path/'b')
    assert report('info', 'mine')['path']=='mine.distill'    # and not the first one


@pytest.mark.parametrize('l1', [None, float('nan'), float('inf')])
def test_too_little_training_is_said(l1): assert 'Likeness not measured' in cli.score_lines(dict(log_mel_l1=l1), 64)[0]


def test_train_then_train_prior(w, tmp_path):
    model = tmp_path/'two.distill'
    assert 'train-prior' in run('train', w.sounds, '-o', model, '--epochs', 1).stdout    # says what comes next
    assert report('info', model)['prior_config'] is None
    assert 'none yet' in run('info', model).stdout
    before = model.read_bytes()
    report('train-prior', w.sounds, model, '-o', tmp_path/'other.distill', '--epochs', 1)
    assert model.read_bytes()==before and report('info', tmp_path/'other.distill')['prior_config']
    report('train-prior', w.sounds, model, '--epochs', 1)
    assert report('info', model)['prior_config']
    report('generate', model, '-o', tmp_path/'a.wav', '--duration', 0.5)


def test_what_is_finished_is_not_learned_again_by_resume(w, tmp_path):
    model = Path(shutil.copy(w.model, tmp_path/'a.distill'))
    before = model.read_bytes()
    for command in ['fit', w.sounds, '-o', model], ['train-prior', w.sounds, model], ['train-prior', w.sounds, w.model, '-o', model]:
        assert report(*command, '--epochs', 1, '--resume')['finished'] and 'is finished' in run(*command, '--epochs', 1, '--resume').stdout
    assert model.read_bytes()==before


def test_from_scratch_leaves_the_base_model_out(w, tmp_path, monkeypatch):
    import distill.fitting
    about, begins = dict(name='all kinds', created='2026-11-20T10:00:00+00:00'), {}
    monkeypatch.setattr(distill.fitting, 'fitting_base', lambda cfg: SimpleNamespace(about=about, tensors={}))
    monkeypatch.setattr(distill.fitting, 'start_from_base', lambda model, base: None)
    for command in 'fit', 'train':
        for flags in [], ['--from-scratch']:
            model = tmp_path/f'{command}{len(flags)}.distill'
            report(command, w.sounds, '-o', model, '--epochs', 1, *flags)
            begins[command, len(flags)] = report('info', model)['training_config']['base']
            assert ('from scratch' if flags else 'the base model all kinds of 2026-11-20') in run('info', model).stdout
    assert begins=={('fit', 0): about, ('train', 0): about, ('fit', 1): None, ('train', 1): None}


# --- settings of the networks
LATE = lambda fraction, text: text.startswith('stage 1') and fraction>0.5
EARLY = lambda fraction, text: text.startswith('stage 1')
PRIOR = lambda fraction, text: text.startswith('stage 2')
READING = lambda fraction, text: text.startswith('Reading')


def settings_of(model):
    "Of both stages, as a model file remembers them."
    about = report('info', model)
    made = about['training_config']
    return about['vqvae_config'], about['prior_config'], made['stage_1'], made.get('stage_2'), made['dataset']


def test_settings_of_the_networks_reach_both_stages(w, tmp_path):
    done = run('fit', w.sounds, '-o', tmp_path/'a', '--epochs', 1, '--levels', 2, '--codes', 24, '--width', 64, '--layers', 2, '--batch-size', '8,4',
               '--learning-rate', '0.002,0.0005', '--held-out', 0.34)
    assert done.exit_code==0 and 'Asked for: 24 codes at each of 2 levels' in done.stdout, done.stderr
    vqvae, prior, one, two, dataset = settings_of(tmp_path/'a.distill')
    assert (vqvae['n_quantizers'], vqvae['codebook_size'], prior['d_model'], prior['n_layers'], prior['n_heads'])==(2, 24, 64, 2, 1)
    assert [(s['batch_size'], s['learning_rate']) for s in (one, two)]==[(8, 0.002), (4, 0.0005)] and dataset['valid_fraction']==0.34
    assert len(report('info', tmp_path/'a.distill')['metadata']['files']['valid'])==2
    report('train', w.sounds, '-o', tmp_path/'b', '--epochs', 1, '--levels', 2, '--batch-size', 8)
    report('train-prior', w.sounds, tmp_path/'b.distill', '--epochs', 1, '--width', 64, '--batch-size', 4, '--learning-rate', 0.0005)
    vqvae, prior, one, two, _ = settings_of(tmp_path/'b.distill')
    assert (vqvae['n_quantizers'], prior['d_model'], one['batch_size'], two['batch_size'], two['learning_rate'], two['weight_decay'])==(2, 64, 8, 4, 0.0005, 0.1)


def test_one_number_is_for_both_stages_and_nothing_given_is_what_suits(w, tmp_path):
    report('fit', w.sounds, '-o', tmp_path/'a', '--epochs', 1, '--batch-size', 4)
    assert [s['batch_size'] for s in settings_of(tmp_path/'a.distill')[2:4]]==[4, 4]
    report('fit', w.sounds, '-o', tmp_path/'b', '--epochs', 1)
    assert [s['batch_size'] for s in settings_of(tmp_path/'b.distill')[2:4]]==[16, 16] and settings_of(tmp_path/'b.distill')[:2]==settings_of(w.model)[:2]


@pytest.mark.parametrize('when, options, words', [
    (LATE, ['--levels', 2], 'n_quantizers was'), (LATE, ['--codes', 24], 'codebook_size was'), (LATE, ['--batch-size', '8,16'], 'batch_size was'),
    (LATE, ['--learning-rate', 0.01], 'learning_rate was'), (LATE, ['--held-out', 0.34], 'valid_fraction was'), (LATE, ['--width', 64], 'stage 2: d_model was 64 and is 32'),
    (LATE, ['--batch-size', '16,8'], 'stage 2: batch_size was'), (PRIOR, ['--layers', 2], 'n_layers was')], ids=lambda o: o[0] if isinstance(o, list) else '')
def test_a_fit_goes_on_with_the_settings_that_it_was_begun_with(w, tmp_path, monkeypatch, when, options, words):
    "Those of stage 2 are asked about also when stage 1 was cut short."
    fit = 'fit', w.sounds, '-o', tmp_path/'a', '--epochs', 8
    with monkeypatch.context() as m:
        m.setattr(cli, 'watch', partial(watched, signal.SIGINT, when))
        assert run(*fit, *options).exit_code==130
    line = run(*fit, '--resume').stderr.splitlines()[-1]
    assert line.startswith('error: ') and 'begun with other sounds or settings' in line and words in line
    assert run(*fit, *options, '--resume').exit_code==0


def test_the_doctor_measures_what_would_be_learned(w, monkeypatch):
    import distill.doctor
    asked = {}
    def measure(collection, device, vqvae, prior, from_scratch, tell, stage_1, stage_2):
        asked.update(vqvae=vqvae, prior=prior, from_scratch=from_scratch, batches=(stage_1, stage_2), held_out=len(collection.valid))
    monkeypatch.setattr(distill.doctor, 'measure_training', measure)
    text = run('doctor', w.sounds, '--levels', 2, '--codes', 24, '--width', 64, '--layers', 2, '--batch-size', '8,4', '--held-out', 0.34, '--from-scratch').stdout
    assert asked['vqvae']==SMALL['vqvae'] | dict(n_quantizers=2, codebook_size=24) and asked['prior']==dict(d_model=64, n_heads=1, n_layers=2)
    assert asked['from_scratch'] and asked['batches']==(dict(batch_size=8), dict(batch_size=4)) and asked['held_out']==2
    assert 'Asked for: 24 codes at each of 2 levels' in text and 'Asked for' not in run('doctor', w.sounds).stdout


@pytest.fixture
def small_base(monkeypatch):
    "A base model that is learned in this process is small, too."
    import distill.base
    from distill.prior import PriorConfig
    from distill.vqvae import VQVAEConfig
    small = VQVAEConfig(channels=(4, 8, 8, 16))
    monkeypatch.setattr(distill.base, 'pretrain', partial(distill.base.pretrain, n_synthesised=4, codebook_batches=2, cfg=small))
    monkeypatch.setattr(distill.base, 'pretrain_prior', partial(distill.base.pretrain_prior, n_synthesised=4, n_dialects=2, n_excerpts=16, codes=small,
                                                                cfg=PriorConfig(d_model=32, n_layers=1, n_heads=1, gap_share=0.0)))


def test_pretrain(w, tmp_path, small_base):
    from distill.base import load_base
    done = run('pretrain', w.sounds, '-o', tmp_path/'base', '--steps', 2, '--seed', 3, '--device', 'cpu')
    assert done.exit_code==0, done.stderr
    about = load_base(tmp_path/'base.safetensors').about
    assert (about['seed'], about['recordings'])==(3, 6)
    assert about['prior']['steps']==2 and about['prior']['dialects']==2
    for words in 'Files    6 recordings', 'synthesised', 'nats', 'Prior    ', 'bits per code of such recordings, 2 steps', f"{sum(about['steps'])} steps", 'Next     copy it to', 'distill fit':
        assert words in done.stdout
    assert run('pretrain', w.sounds, '-o', tmp_path/'again', '--steps', 2, '--seed', 3, '--device', 'cpu').exit_code==0
    once, again = (load_base(tmp_path/f'{name}.safetensors').tensors for name in ('base', 'again'))
    assert once.keys()==again.keys() and all(torch.equal(x, again[name]) for name, x in once.items())           # a seed and a number of steps are one model
    alone = report('pretrain', w.sounds, '-o', tmp_path/'b', '--steps', 1, '--prior-minutes', 0, '--device', 'cpu')
    assert alone['model'].endswith('b.safetensors') and 'prior' not in alone
    done = run('pretrain', w.sounds, '-o', tmp_path/'same', '--start', tmp_path/'base.safetensors', '--steps', 0, '--device', 'cpu')
    assert done.exit_code==0, done.stderr
    before, after = (load_base(tmp_path/f'{name}.safetensors') for name in ('base', 'same'))
    assert before.about==after.about and before.tensors.keys()==after.tensors.keys()                           # nothing was missing
    assert all((after.tensors[name]==x).all() for name, x in before.tensors.items())
    on = report('pretrain', w.sounds, '-o', tmp_path/'on', '--start', tmp_path/'base.safetensors', '--steps', 0, '--prior-minutes', 0.05, '--device', 'cpu')
    assert on['prior']['before']==about['prior'] and on['steps']==about['steps']                               # the prior alone went on
    only_codebooks = dict(about, held_out_log_mel_l1=[], steps=[], minutes=[])
    assert any('Likeness not measured' in line for line in cli.base_lines(only_codebooks, tmp_path/'base.safetensors', tmp_path))


@pytest.mark.parametrize('l1, kept', [(0.5, True), (float('inf'), False)], ids=['late', 'early'])
def test_interrupted_pretraining(w, tmp_path, monkeypatch, small_base, l1, kept):
    "What was learned is written; before there is a score, nothing is."
    import distill.base
    pretrain = distill.base.pretrain
    def interrupted(*args, **kw):
        base = pretrain(*args, **kw)
        return base._replace(about=dict(base.about, held_out_log_mel_l1=[0.7, l1]))
    monkeypatch.setattr(distill.base, 'pretrain', interrupted)
    monkeypatch.setattr(cli, 'watch', partial(watched, signal.SIGINT, lambda fraction, text: fraction>0.5))
    done = run('pretrain', w.sounds, '-o', tmp_path/'base', '--steps', 10, '--device', 'cpu', '--json')
    answer = json.loads(done.stdout)
    assert done.exit_code==130 and answer['error']=='interrupted' and (tmp_path/'base.safetensors').exists()==kept==('model' in answer)
    assert answer.get('stopped')==('asked to' if kept else None)


@pytest.mark.parametrize('number, code, when, saved, has_prior', [
    (signal.SIGINT, 130, READING, False, None), (signal.SIGINT, 130, EARLY, True, False),
    (signal.SIGINT, 130, LATE, True, False), (signal.SIGTERM, 143, LATE, True, False), (signal.SIGINT, 130, PRIOR, True, True)],
    ids=['reading', 'early', 'late', 'terminated', 'prior'])
def test_interrupted_fit_keeps_what_was_learned(w, tmp_path, monkeypatch, number, code, when, saved, has_prior):
    for name, show in ('progress', signals_at), ('watch', watched): monkeypatch.setattr(cli, name, partial(show, number, when))
    new, before = tmp_path/'a.distill', signal.getsignal(signal.SIGINT)                # a shell's background job ignores it from the start
    done = run('fit', w.sounds, '-o', new, '--epochs', 8, '--json')
    answer = json.loads(done.stdout)
    assert done.exit_code==code and answer['error']=='interrupted' and 'Traceback' not in done.stderr
    assert new.exists()==saved==('model' in answer) and 'kept' not in answer
    if saved: assert bool(report('info', new)['prior_config'])==has_prior and 'Stage 1' in run('info', new).stdout
    assert sorted(p.name for p in tmp_path.iterdir())==['a.distill', 'a.distill.checkpoints']*saved    # no temporary file is left
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize('command, when', [('fit', LATE), ('fit', PRIOR), ('train', LATE)])
def test_an_interrupted_fit_leaves_a_finished_model_alone(w, tmp_path, monkeypatch, command, when):
    "What was learned goes beside it, again and again; the same command with --resume goes on to the end, and then takes its place."
    old, other = Path(shutil.copy(w.model, tmp_path/'a.distill')), tmp_path/'a-unfinished.distill'
    whole, fit = old.read_bytes(), (command, w.sounds, '-o', old, '--epochs', 8, '--no-library')
    with monkeypatch.context() as m:
        m.setattr(cli, 'watch', partial(watched, signal.SIGINT, when))
        done = run(*fit, '--json')
        answer = json.loads(done.stdout)
        assert done.exit_code==130 and (answer['model'], answer['kept'])==(str(other), str(old)) and 'stays as it is; the same command with --resume' in done.stderr
        assert old.read_bytes()==whole and report('info', other)['metadata']['stopped'][-1]=='asked to'
        before = other.read_bytes()
        assert json.loads(run(*fit, '--no-resume', '--json').stdout)['model']==str(other)!=before    # over one that was cut short, too
    assert report(*fit, '--resume')['model']==str(old) and old.read_bytes()!=whole
    assert report('info', old)['metadata']['stopped'][-1]!='asked to' and not (tmp_path/'a.distill.checkpoints').exists()


def test_an_unfinished_prior(w, tmp_path, monkeypatch):
    "It is added to codes that have none, and does not take the place of one that was learned to the end."
    codes, whole = tmp_path/'codes.distill', Path(shutil.copy(w.model, tmp_path/'whole.distill'))
    report('train', w.sounds, '-o', codes, '--epochs', 1)
    monkeypatch.setattr(cli, 'watch', partial(watched, signal.SIGINT, lambda fraction, text: text.startswith('encoding')))
    done, there = run('train-prior', w.sounds, codes, '--epochs', 8), sorted(tmp_path.iterdir())
    assert done.exit_code==130 and 'nothing was learned yet, and nothing was written' in done.stderr and there==[codes, whole]
    monkeypatch.setattr(cli, 'watch', partial(watched, signal.SIGINT, PRIOR))
    answer = json.loads(run('train-prior', w.sounds, codes, '--epochs', 8, '--json').stdout)
    assert answer['model']==str(codes) and 'kept' not in answer and report('info', codes)['prior_config']
    monkeypatch.setattr(cli, 'watch', partial(watched, signal.SIGINT, lambda fraction, text: text.startswith('stage 2') and fraction>0.9))
    before = whole.read_bytes()
    answer = json.loads(run('train-prior', w.sounds, whole, '--epochs', 30, '--json').stdout)
    assert answer['error']=='interrupted' and whole.read_bytes()==before and answer.get('model') in (None, str(tmp_path/'whole-unfinished.distill'))


def test_what_is_no_model_is_not_written_over_by_half_a_model(w, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, 'watch', partial(watched, signal.SIGINT, LATE))
    (tmp_path/'a.distill').write_bytes(b'of a newer Distill, it may be')
    assert json.loads(run('fit', w.sounds, '-o', tmp_path/'a', '--epochs', 8, '--json').stdout)['model']==str(tmp_path/'a-unfinished.distill')
    assert (tmp_path/'a.distill').read_bytes()==b'of a newer Distill, it may be'


def test_a_second_signal_ends_at_once(w, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, 'watch', partial(watched, signal.SIGINT, lambda fraction, text: fraction>0.5, times=2))
    done = run('fit', w.sounds, '-o', tmp_path/'a.distill', '--epochs', 8)
    assert done.exit_code==130 and [p.name for p in tmp_path.iterdir()] in ([], ['a.distill.checkpoints'])


@pytest.mark.skipif(os.name=='nt', reason='no such signals on Windows')
def test_ctrl_c_in_a_real_process(w, tmp_path):
    command = [sys.executable, '-m', 'distill.cli', 'fit', str(w.sounds), '-o', str(tmp_path/'a'), '--minutes', '5']
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding='utf-8', env=ENV) as p:
        lines = []
        for line in p.stderr:
            lines.append(line)
            if 'stage 1' in line: break
        p.send_signal(signal.SIGINT)
        lines += p.stderr.readlines()
        assert p.wait(60)==130
    text = ''.join(lines)
    assert 'Traceback' not in text and lines[-1].startswith('interrupted: what was learned so far is in') and (tmp_path/'a.distill').exists()


# --- generating
def test_generate_is_exact_audible_and_repeatable(w, tmp_path):
    "Also between two processes; another seed is another sound."
    made = [process('generate', w.model, '-o', tmp_path/f'{i}.wav', '--duration', 3, '--seed', 7, '--json') for i in range(2)]
    assert [m.returncode for m in made]==[0, 0], made[0].stderr
    assert json.loads(made[0].stdout)['files'][0]['seed']==7
    assert (tmp_path/'0.wav').read_bytes()==(tmp_path/'1.wav').read_bytes()
    wav, rate = sf.read(tmp_path/'0.wav')
    assert rate==48_000 and wav.shape==(144_000,) and 1e-3<np.abs(wav).max()<0.99
    report('generate', w.model, '-o', tmp_path/'2.wav', '--duration', 3, '--seed', 8)
    assert (tmp_path/'0.wav').read_bytes()!=(tmp_path/'2.wav').read_bytes()
    assert 'Generating chunk 2/4…' in made[0].stderr and 'Generating' not in made[0].stdout


def test_generate_ten_seconds_by_default(w, tmp_path):
    report('generate', w.model, '-o', tmp_path/'a.wav')
    assert sf.info(tmp_path/'a.wav').frames==480_000


def test_generate_many(w, tmp_path):
    about = report('generate', w.model, '-o', tmp_path/'many', '--count', 3, '--duration', 0.5, '--seed', 7, '--format', 'flac')
    files = sorted((tmp_path/'many').glob('*.flac'))
    assert [f['seed'] for f in about['files']]==[7, 1007, 2007] and len(files)==3
    assert len({f.read_bytes() for f in files})==3
    report('generate', w.model, '-o', tmp_path/'one.flac', '--duration', 0.5, '--seed', 1007)    # each can be made alone
    assert (tmp_path/'one.flac').read_bytes()==(tmp_path/'many'/'small-seed1007.flac').read_bytes()


def test_what_o_and_format_mean_together(w, tmp_path, monkeypatch):
    "A slash at the end means a folder; a name without an ending gets the one of --format; two endings are one too many."
    monkeypatch.chdir(tmp_path)
    def files(*options): return [Path(f['file']).as_posix() for f in report('generate', w.model, *options)['files']]
    made = partial(files, '--duration', 0.2, '--seed', 3)
    assert made('-o', 'takes/', '--format', 'flac')==['takes/small-seed3.flac'] and made('-o', 'takes/')==['takes/small-seed3.wav']
    assert made('-o', 'one', '--format', 'flac')==['one.flac'] and sf.info('one.flac').format=='FLAC'
    assert made('-o', 'two.aif', '--format', 'aiff')==['two.aif'] and made('-o', 'takes', '--count', 1)==['takes/small-seed3.wav']
    assert files('--from-sidecar', 'one.flac.json', '-o', 'again/')==['again/one.flac']
    wrong = run('generate', w.model, '-o', 'x.wav', '--format', 'flac')
    assert wrong.exit_code==2 and 'give either' in wrong.stderr and not Path('x.wav').exists()
    assert Path(report('reconstruct', w.model, w.one, '-o', 'heard', '--format', 'ogg')['files'][0]['file']).name=='heard.ogg'


def test_a_dithered_file_as_another_format(w, tmp_path):
    report('generate', w.model, '-o', tmp_path/'a.wav', '--duration', 0.3, '--dither')
    again = 'generate', w.model, '--from-sidecar', tmp_path/'a.wav.json', '-o', tmp_path/'a.ogg'
    wrong = run(*again)
    assert wrong.exit_code==2 and '--no-dither' in wrong.stderr
    assert report(*again, '--no-dither')['export']['dither'] is False and (tmp_path/'a.ogg').exists()


def test_generate_into_a_folder_that_is_there(w, tmp_path):
    report('generate', w.model, '-o', tmp_path, '--duration', 0.2, '--seed', 3)
    assert sorted(p.name for p in tmp_path.iterdir())==['small-seed3.wav', 'small-seed3.wav.json']


@pytest.mark.parametrize('name, options, subtype, rate', [
    ('a.wav', [], 'PCM_16', 48_000), ('a.wav', ['--bit-depth', 32], 'FLOAT', 48_000),
    ('a.flac', ['--bit-depth', 24, '--sample-rate', 44_100], 'PCM_24', 44_100),
    ('a.ogg', ['--sample-rate', 22_050], 'VORBIS', 22_050), ('a.mp3', [], 'MPEG_LAYER_III', 48_000), ('a', [], 'PCM_16', 48_000)])
def test_generate_formats(w, tmp_path, name, options, subtype, rate):
    path = Path(report('generate', w.model, '-o', tmp_path/name, '--duration', 0.5, '--seed', 1, *options)['files'][0]['file'])
    info = sf.info(path)
    assert (info.subtype, info.samplerate)==(subtype, rate)
    if path.suffix!='.mp3': assert abs(info.frames - rate/2)<=1


def test_generate_options_reach_the_sampler(w, tmp_path):
    def settings(*options):
        report('generate', w.model, '-o', tmp_path/'a.wav', '--duration', 0.3, *options)
        return json.loads((tmp_path/'a.wav.json').read_text(encoding='utf-8'))
    plain = settings('--seed', 4)
    assert plain['sampling']['top_p']==0.9 and plain['sampling']['temperature']==1.0 and plain['sampling']['seed']==4
    given = settings('--temperature', 0.5, '--top-k', 9, '--top-p', 0, '--overlap-ms', 0)
    assert [given['sampling'][k] for k in ('temperature', 'top_k', 'top_p')]==[0.5, 9, 0] and given['overlap_ms']==0
    assert settings('--preset', 'greedy')['sampling']['argmax']
    creative = settings('--preset', 'creative', '--temperature', 0.7)['sampling']    # an option changes the preset
    assert (creative['temperature'], creative['top_p'])==(0.7, 0.95)
    assert settings()['sampling']['seed']!=settings()['sampling']['seed']    # a fresh one each time


def sidecar(path): return json.loads(path.with_name(f'{path.name}.json').read_text(encoding='utf-8'))


def test_settings_per_level(w, tmp_path):
    out = tmp_path/'a.wav'
    report('generate', w.model, '-o', out, '--duration', 0.3, '--temperature', '0.7,1, 1.2', '--top-k', '20,0', '--top-p', '0.9,0.8', '--min-p', '0.1,0',
           '--typical-p', '0.9,0', '--repetition-penalty', '1,1.2', '--argmax', 'yes,no', '--penalty-context', 8, '--gumbel')
    assert sidecar(out)['sampling'] | dict(seed=None)==dict(
        temperature=[0.7, 1, 1.2], top_k=[20, 0], top_p=[0.9, 0.8], min_p=[0.1, 0], typical_p=[0.9, 0], repetition_penalty=[1, 1.2],
        argmax=[True, False], penalty_context=8, gumbel=True, seed=None)


@pytest.mark.parametrize('option, value, field, wanted', [
    ('--min-p', '0.05', 'min_p', 0.05), ('--typical-p', '0.8', 'typical_p', 0.8), ('--repetition-penalty', '1.3', 'repetition_penalty', 1.3),
    ('--penalty-context', '9', 'penalty_context', 9), ('--argmax', 'yes', 'argmax', True), ('--gumbel', None, 'gumbel', True)])
def test_each_setting_of_the_sampler(w, tmp_path, option, value, field, wanted):
    report('generate', w.model, '-o', tmp_path/'a.wav', '--duration', 0.2, *filter(None, [option, value]))
    assert sidecar(tmp_path/'a.wav')['sampling'][field]==wanted


def test_a_kit_of_one_shots(w, tmp_path):
    "The model decides how long each is; each can be made alone."
    about = report('generate', w.model, '-o', tmp_path/'kit', '--count', 4, '--duration', 'auto', '--label', 'drums', '--seed', 3)
    assert [f['seed'] for f in about['files']]==[3, 1003, 2003, 3003] and about['settings']['duration_s'] is None
    for f in about['files']: assert sf.info(f['file']).frames==round(48_000*f['seconds'])>0 and sidecar(Path(f['file']))['label']=='drums'
    report('generate', w.model, '-o', tmp_path/'one.wav', '--duration', 'auto', '--label', 'drums', '--seed', 2003)
    assert (tmp_path/'one.wav').read_bytes()==(tmp_path/'kit'/'small-seed2003.wav').read_bytes()


def test_many_clips_come_in_parts(w, tmp_path, monkeypatch):
    "No more at once than fit into memory; it changes nothing but the words."
    args = 'generate', w.model, '--count', 3, '--duration', 0.3, '--seed', 7
    run(*args, '-o', tmp_path/'at once')
    monkeypatch.setattr(cli, 'clips_at_once', lambda seconds: 2)
    done = run(*args, '-o', tmp_path/'parts')
    assert 'Part 1/2: ' in done.stderr and 'Part 2/2: ' in done.stderr and 'Part 3' not in done.stderr
    a, b = (sorted((tmp_path/name).glob('*.wav')) for name in ('at once', 'parts'))
    assert [o.read_bytes() for o in a]==[o.read_bytes() for o in b] and len(a)==3


@pytest.mark.parametrize('what', ['interrupted', 'failed'])
def test_what_was_written_before_the_end_is_told(w, tmp_path, monkeypatch, what):
    "In the answer, and in lines."
    import distill.codes, distill.pipeline
    monkeypatch.setattr(cli, 'clips_at_once', lambda seconds: 2)
    def breaks_at(n, f):
        calls = []
        def g(*args, **kw):
            if len(calls)==n: raise KeyboardInterrupt if what=='interrupted' else OSError(28, 'No space left on device')
            calls.append(1)
            return f(*args, **kw)
        return g
    def told(*args):
        done, code = run(*args, '--json'), 130 if what=='interrupted' else 1
        answer = json.loads(done.stdout)
        assert done.exit_code==code and answer['error'] and all(f['file'] in done.stderr for f in answer.get('files', []))
        return [Path(f['file']) for f in answer.get('files', [])]
    with monkeypatch.context() as m:
        m.setattr(distill.pipeline, 'generate_clips', breaks_at(1, distill.pipeline.generate_clips))
        written = told('generate', w.model, '-o', tmp_path/'a', '--count', 5, '--duration', 0.2, '--seed', 7)
        assert written==[tmp_path/'a'/f'small-seed{s}.wav' for s in (7, 1007)] and set(written)==set((tmp_path/'a').glob('*.wav'))
    with monkeypatch.context() as m:    # in the middle of a part
        m.setattr(distill.pipeline.Clip, 'export', breaks_at(1, distill.pipeline.Clip.export))
        assert told('generate', w.model, '-o', tmp_path/'b', '--count', 2, '--duration', 0.2, '--seed', 7)==[tmp_path/'b'/'small-seed7.wav']
        assert told('generate', w.model, '-o', tmp_path/'c', '--count', 2, '--duration', 0.2, '--seed', 7)==[]
    with monkeypatch.context() as m:
        m.setattr(distill.codes, 'reconstruct', breaks_at(2, distill.codes.reconstruct))
        written = told('reconstruct', w.model, w.sounds, '-o', tmp_path/'d')
        assert len(written)==2 and set(written)==set((tmp_path/'d').rglob('*.wav'))
    with monkeypatch.context() as m:
        m.setattr(cli, 'save_clip', breaks_at(1, cli.save_clip))
        assert len(told('vary', w.model, w.one, '-o', tmp_path/'e', '--count', 2))==1


def test_loop_and_crossfade(w, tmp_path):
    about = report('generate', w.model, '-o', tmp_path/'a.wav', '--loop', '--duration', 1.2, '--seed', 1)
    assert about['settings']['loop'] and sf.info(tmp_path/'a.wav').frames==57_600
    faded = [run('generate', w.model, '-o', tmp_path/f'{ms}.wav', '--duration', 2.5, '--seed', 1, '--stitch', 'crossfade', '--overlap-ms', ms) for ms in (0, 200)]
    assert [o.exit_code for o in faded]==[0, 0] and sidecar(tmp_path/'200.wav')['stitch']=='crossfade'
    assert (tmp_path/'0.wav').read_bytes()!=(tmp_path/'200.wav').read_bytes() and 'note' not in faded[0].stderr
    idle = run('generate', w.model, '-o', tmp_path/'b.wav', '--duration', 0.3, '--overlap-ms', 20)    # said, not silently ignored
    assert idle.exit_code==0 and '--overlap-ms does nothing' in idle.stderr


def test_going_on_from_a_sound(w, tmp_path):
    make = lambda name, *more: report('generate', w.model, '-o', tmp_path/name, '--prompt', w.one, '--duration', 1, '--seed', 1, *more)
    make('a.wav')
    make('b.wav', '--prompt-seconds', 0.2)
    a, b = sidecar(tmp_path/'a.wav'), sidecar(tmp_path/'b.wav')
    assert (a['prompt_s'], b['prompt_s'], a['prompt_samples'])==(None, 0.2, 24_000) and sf.info(tmp_path/'a.wav').frames==48_000
    report('reconstruct', w.model, w.one, '-o', tmp_path/'heard.wav')
    heard, wav = (sf.read(tmp_path/o)[0][:14_000] for o in ('heard.wav', 'a.wav'))
    other = sf.read(tmp_path/'b.wav')[0][:14_000]
    spectrum = lambda x: np.abs(np.fft.rfft(x))
    distance = lambda x: np.abs(spectrum(x)/np.linalg.norm(spectrum(x)) - spectrum(heard)/np.linalg.norm(spectrum(heard))).sum()
    assert distance(wav)<distance(other)    # it begins with the prompt, as the codes keep it; with less of it, with less of it


def test_the_form_of_a_file_and_its_sidecar(w, tmp_path):
    about = report('generate', w.model, '-o', tmp_path/'a.flac', '--duration', 1, '--seed', 3, '--lufs', -25, '--stereo', 0.5, '--bit-depth', 24, '--title', 'One',
                   '--artist', 'Me', '--comment', 'mine')
    file, = about['files']
    info = sf.SoundFile(tmp_path/'a.flac')
    assert (info.channels, info.title, info.artist, info.comment)==(2, 'One', 'Me', 'mine') and file['channels']==2 and isinstance(file['findings'], list)
    assert about['export']==sidecar(tmp_path/'a.flac')['export']==dict(bit_depth=24, lufs=-25, width=0.5, title='One', artist='Me', comment='mine')
    report('generate', w.model, '--from-sidecar', tmp_path/'a.flac.json', '-o', tmp_path/'b.flac')
    assert (tmp_path/'b.flac').read_bytes()==(tmp_path/'a.flac').read_bytes()
    mono = report('generate', w.model, '--from-sidecar', tmp_path/'a.flac.json', '-o', tmp_path/'c.flac', '--stereo', 0)
    assert mono['files'][0]['channels']==1


def test_two_channels_are_kept_when_asked(w, tmp_path):
    wav, rate = sf.read(w.one)
    sf.write(tmp_path/'two.wav', np.stack([wav, 0.3*wav], 1), rate)
    for more, channels in ([], 1), (['--keep-stereo'], 2), (['--stereo', 0.5], 2):
        file, = report('reconstruct', w.model, tmp_path/'two.wav', '-o', tmp_path/'out.wav', *more)['files']
        info = sf.info(tmp_path/'out.wav')
        assert info.channels==file['channels']==channels and info.frames==len(wav)
    file, = report('reconstruct', w.model, w.one, '-o', tmp_path/'out.wav', '--keep-stereo')['files']
    assert file['channels']==1    # it had one
    assert run('reconstruct', w.model, w.one, '-o', tmp_path/'out.wav', '--keep-stereo', '--stereo', 0.5).exit_code==2


@pytest.mark.parametrize('options', [['--duration', '0.5', '--temperature', '0.8,1.1'], ['--duration', 'auto', '--label', 'bells'], ['--loop', '--duration', '1'],
                                     ['--duration', '1.5', '--stitch', 'crossfade'], ['--preset', 'creative', '--duration', '0.3']])
def test_made_again_from_its_sidecar(w, tmp_path, options):
    report('generate', w.model, '-o', tmp_path/'a.flac', '--bit-depth', 24, '--sample-rate', 44_100, *options)
    about = report('generate', w.model, '--from-sidecar', tmp_path/'a.flac.json', '-o', tmp_path/'b.flac')
    assert (tmp_path/'a.flac').read_bytes()==(tmp_path/'b.flac').read_bytes() and (about['sample_rate'], about['bit_depth'])==(44_100, 24)
    first, again = sidecar(tmp_path/'a.flac'), sidecar(tmp_path/'b.flac')
    assert again==first | dict(file='b.flac')
    (tmp_path/'in').mkdir()
    report('generate', w.model, '--from-sidecar', tmp_path/'a.flac.json', '-o', tmp_path/'in')    # into a folder: under its own name
    assert (tmp_path/'in'/'a.flac').read_bytes()==(tmp_path/'a.flac').read_bytes()
    changed = report('generate', w.model, '--from-sidecar', tmp_path/'a.flac.json', '-o', tmp_path/'c.wav', '--sample-rate', 48_000, '--bit-depth', 16)
    assert (changed['sample_rate'], changed['bit_depth'])==(48_000, 16)    # the form may be another, the sound is the same


def test_made_again_with_its_prompt(w, tmp_path):
    report('generate', w.model, '-o', tmp_path/'a.wav', '--prompt', w.one, '--duration', 0.8)
    report('generate', w.model, '--from-sidecar', tmp_path/'a.wav.json', '--prompt', w.one, '-o', tmp_path/'b.wav')
    assert (tmp_path/'a.wav').read_bytes()==(tmp_path/'b.wav').read_bytes()


def test_a_lost_file_can_be_put_back(w, tmp_path):
    report('generate', w.model, '-o', tmp_path/'a.wav', '--duration', 0.3)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    (tmp_path/'a.wav').unlink()
    report('generate', w.model, '--from-sidecar', tmp_path/'a.wav.json', '-o', tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()}==before


def test_info_lists_the_labels(w):
    assert report('info', w.model)['prior_config']['labels']==['bells', 'drums', 'strings', 'textures']
    text = run('info', w.model).stdout
    assert 'Labels    bells, drums, strings, textures' in text and 'Began     from scratch' in text


# --- presets
def test_presets(w, tmp_path, monkeypatch):
    monkeypatch.setenv('DISTILL_HOME', str(tmp_path/'home'))
    assert list(report('presets', 'list')['presets'])==['default', 'greedy', 'creative']
    saved = report('presets', 'save', 'My drums', '--preset', 'creative', '--temperature', '0.7,1', '--min-p', 0.05, '--seed', 9)
    assert Path(saved['file']).is_relative_to(tmp_path/'home') and saved['settings']['top_p']==0.95
    assert report('presets', 'list')['presets']['My drums']==saved['settings']
    assert 'My drums' in (text := run('presets', 'list').stdout) and 'temperature [0.7, 1.0]' in text
    report('generate', w.model, '-o', tmp_path/'a.wav', '--duration', 0.3, '--preset', 'my drums', '--top-p', 0.5)
    assert sidecar(tmp_path/'a.wav')['sampling']==saved['settings'] | dict(top_p=0.5)
    report('presets', 'save', 'My drums', '--gumbel')    # in its place
    assert report('presets', 'list')['presets']['My drums']['seed'] is None
    report('presets', 'remove', 'My drums')
    assert 'My drums' not in run('presets', 'list').stdout


def test_a_broken_preset_hides_none_of_the_others(tmp_path, monkeypatch):
    monkeypatch.setenv('DISTILL_HOME', str(tmp_path))
    (tmp_path/'presets').mkdir()
    (tmp_path/'presets'/'bad.json').write_text('{', encoding='utf-8')
    report('presets', 'save', 'good')
    done = run('presets', 'list')
    assert done.exit_code==0 and 'good' in done.stdout and 'bad' not in done.stdout and 'mend or delete' in done.stderr


# --- codes
def test_encode_and_decode(w, tmp_path):
    about = report('encode', w.model, w.one, '-o', tmp_path/'codes')
    assert about['file'].endswith('codes.npz') and about['bands']==8 and about['seconds']==0.5
    report('decode', w.model, tmp_path/'codes.npz', '-o', tmp_path/'a.wav')
    assert sf.info(tmp_path/'a.wav').frames==24_000
    report('decode', w.model, tmp_path/'codes.npz', '-o', tmp_path/'b.flac', '--sample-rate', 44_100)
    assert sf.info(tmp_path/'b.flac').samplerate==44_100


def test_an_edited_sound_is_as_loud_as_asked(w, tmp_path):
    for line in ('edit', w.one, 'reverse'), ('paste', w.one, w.one), ('rewrite', w.one, '--levels', 1):
        file = report(line[0], w.model, *line[1:], '-o', tmp_path/'a.flac', '--lufs', -40, '--bit-depth', 24)
        assert abs(file['lufs'] + 40)<0.5 and sidecar(tmp_path/'a.flac')['export']==dict(lufs=-40, bit_depth=24)
        assert 'LUFS' in run(line[0], w.model, *line[1:], '-o', tmp_path/'a.flac').stdout


def test_decode_some_levels(w, tmp_path):
    report('encode', w.model, w.one, '-o', tmp_path/'codes.npz')
    sound = lambda *options: report('decode', w.model, tmp_path/'codes.npz', '-o', tmp_path/'a.wav', *options) and (tmp_path/'a.wav').read_bytes()
    every, first = sound(), sound('--levels', 0)
    from distill.model import load_model
    levels = load_model(w.model).vqvae_config.n_quantizers
    assert sound('--levels', ','.join(map(str, range(levels))))==every!=first and len(first)==len(every)
    assert run('decode', w.model, tmp_path/'codes.npz', '-o', tmp_path/'b.wav', '--levels', levels).exit_code==1
    assert run('decode', w.model, tmp_path/'codes.npz', '-o', tmp_path/'b.wav', '--levels', 'x').exit_code==2


@pytest.mark.parametrize('rate, n', [(48_000, 24_001), (44_100, 10_007), (8_000, 999), (96_000, 12_345)])
def test_reconstruct_keeps_rate_and_length(w, tmp_path, rate, n):
    sf.write(tmp_path/'in.wav', 0.3*np.sin(np.arange(n)*0.1), rate)
    report('reconstruct', w.model, tmp_path/'in.wav', '-o', tmp_path/'out.wav')
    info = sf.info(tmp_path/'out.wav')
    assert (info.samplerate, info.frames)==(rate, n)


def test_reconstruct_is_encode_then_decode(w, tmp_path):
    report('encode', w.model, w.one, '-o', tmp_path/'c.npz')
    report('decode', w.model, tmp_path/'c.npz', '-o', tmp_path/'a.wav')
    report('reconstruct', w.model, w.one, '-o', tmp_path/'b.wav')
    assert (tmp_path/'a.wav').read_bytes()==(tmp_path/'b.wav').read_bytes()


def test_reconstruct_a_folder(w, tmp_path):
    source = tmp_path/'in'
    (source/'sub').mkdir(parents=True)
    for name in 'a.wav', 'a.flac', 'sub/b.flac': sf.write(source/name, 0.3*np.sin(np.arange(9000)*0.1), 44_100)
    (source/'bad.wav').write_text('no sound', encoding='utf-8')
    about = report('reconstruct', w.model, source, '-o', tmp_path/'out')
    assert sorted(p.relative_to(tmp_path/'out').as_posix() for p in (tmp_path/'out').rglob('*.wav'))== \
        ['a.flac.wav', 'a.wav', 'sub/b.wav']
    assert [s['name'] for s in about['skipped']]==['bad.wav'] and all(f['seconds']==9000/44_100 for f in about['files'])


# --- scores
def test_how_much_is_generated_to_be_evaluated(w):
    a, b, c = (report('evaluate', w.model, w.sounds, '--count', 2, '--seed', seed) for seed in (0, 1, 0))
    assert a['n_clips']==2 and a['memorisation']!=b['memorisation'] and a==c and a['files']==b['files']
    none = report('evaluate', w.model, w.sounds, '--count', 0)
    assert none['n_clips']==0 and none['generated'] is None and none['mel']==a['mel']


def test_evaluate(w, tmp_path):
    card, page = tmp_path/'card.md', tmp_path/'page.html'
    about = report('evaluate', w.model, w.sounds, '--card', card, '--page', page)
    assert card.read_text(encoding='utf-8').startswith('# ') and (about['card'], about['page'])==(str(card), str(page))
    shown = page.read_text(encoding='utf-8')
    assert shown.count('<audio') >= 2 and about['memorisation']['verdict'] in html.unescape(shown)
    assert 'is an input' in run('evaluate', w.model, w.sounds, '--card', w.model).stderr
    assert len(about['files'])==1 and about['n_learned']==5 and 0<about['ceiling']<about['wave']
    assert 'ceiling' in run('evaluate', w.model, w.sounds).stdout


def test_bench_asks_for_both_recipes(monkeypatch, tmp_path):
    import distill.bench
    class Table(dict):
        def __str__(self): return 'plain beside ours'
        def to_dict(self): return self
    def bench_recipes(folder, minutes, seed, **kw):
        kw['progress_callback'](0.5, 'half')
        return Table(folder=str(folder), minutes=minutes, seed=seed, device=kw['device'])
    monkeypatch.setattr(distill.bench, 'bench_recipes', bench_recipes)
    assert report('bench', '--recipes', tmp_path, '--minutes', 2, '--device', 'cpu')== \
        dict(folder=str(tmp_path), minutes=2.0, seed=0, device='cpu')
    assert run('bench', '--recipes', tmp_path).stdout=='plain beside ours\n' and report('bench', '--recipes', tmp_path)['minutes']==5
    wrong = run('bench', '--minutes', 2)
    assert wrong.exit_code==2 and '--recipes' in wrong.stderr and '--epochs' not in run('bench', '--help').stdout


def test_bench_of_fits(monkeypatch, tmp_path):
    import distill.bench_fit
    class Table(dict):
        def __str__(self): return 'said and true'
        def to_dict(self): return self
    monkeypatch.setattr(distill.bench_fit, 'bench_estimate', lambda folders, minutes, seed, **kw: Table(folders=[*map(str, folders)], minutes=minutes, seed=seed))
    monkeypatch.setattr(distill.bench_fit, 'bench_scale', lambda minutes, seed, **kw: Table(minutes=minutes, seed=seed))
    assert report('bench', '--estimate', 'a', '--estimate', 'b', '--seed', 3)==dict(folders=['a', 'b'], minutes=2.0, seed=3)
    assert report('bench', '--scale', '--minutes', 4)==dict(minutes=4.0, seed=0) and run('bench', '--scale').stdout=='said and true\n'
    for both in (['--scale', '--recipes', 'a'], ['--estimate', 'a', '--peers'], ['a.distill', '--scale']):
        wrong = run('bench', *both)
        assert wrong.exit_code==2 and 'give it alone' in ' '.join(wrong.stderr.split())


def test_bench_measures_a_model(monkeypatch, tmp_path):
    import distill.bench
    class Table(dict):
        def __str__(self): return 'where the time goes'
        def to_dict(self): return self
    monkeypatch.setattr(distill.bench, 'bench_model', lambda model, seed, **kw: Table(model=model and str(model), seed=seed))
    monkeypatch.setattr(distill.bench, 'bench_everything', lambda model, sounds, seed, **kw: Table(model=str(model), sounds=[*map(str, sounds)], seed=seed))
    assert report('bench', tmp_path/'a.distill', '--peers', '--sounds', 'a', '--sounds', 'b', '--seed', 3)== \
        dict(model=str(tmp_path/'a.distill'), sounds=['a', 'b'], seed=3)
    assert report('bench', tmp_path/'a.distill', '--seed', 3)==dict(model=str(tmp_path/'a.distill'), seed=3)
    wrong = run('bench', '--sounds', 'a')
    assert wrong.exit_code==2 and '--peers' in wrong.stderr
    assert run('bench').stdout=='where the time goes\n' and report('bench')['model'] is None


def test_demo(monkeypatch, tmp_path):
    import distill.synthesis
    monkeypatch.setattr(distill.synthesis, 'write_collection', partial(distill.synthesis.write_collection, n_files=8))
    for _ in 'first', 'again':
        done = run('demo', '-o', tmp_path/'demo', '--minutes', 0.03)
        assert done.exit_code==0, done.stderr
        for words in 'demo.wav', 'demo.png', 'demo.distill', 'never learned from', 'nats', 'bits per code', 'are in use':
            assert words in done.stdout
        (tmp_path/'demo'/'mine.txt').write_text('mine', encoding='utf-8')
    assert sf.info(tmp_path/'demo'/'demo.wav').frames==480_000 and (tmp_path/'demo'/'demo.wav.json').exists()
    assert (tmp_path/'demo'/'demo.png').read_bytes()[:4]==b'\x89PNG' and (tmp_path/'demo'/'mine.txt').exists()
    assert len(list((tmp_path/'demo'/'sounds').rglob('*.flac')))==8


def test_demo_that_is_interrupted(monkeypatch, tmp_path):
    "It has no --resume, and offers none."
    from distill import cli, synthesis
    def learn(*args, **named): raise cli.Interrupted(143, dict(model=tmp_path/'demo.distill', resume='stage 1, step 5'))
    monkeypatch.setattr(cli, 'learn', learn)
    monkeypatch.setattr(synthesis, 'write_collection', lambda folder, **named: folder)
    done = run('demo', '-o', tmp_path/'demo')
    assert done.exit_code==143 and 'demo.distill' in done.stderr and '--resume' not in done.stderr


def test_demo_destroys_nothing(tmp_path):
    (tmp_path/'demo.wav').write_text('mine', encoding='utf-8')
    done = run('demo', '-o', tmp_path)
    assert done.exit_code==1 and 'choose another folder' in done.stderr and len(list(tmp_path.iterdir()))==1


# --- progress
def test_a_terminal_gets_a_bar(monkeypatch):
    "And the report stays on standard output."
    import io
    class Terminal(io.StringIO):
        def isatty(self): return True
    monkeypatch.setattr(sys, 'stderr', Terminal())
    out = sys.stdout
    with cli.progress() as tell:
        tell(0.5, 'Reading [bold]x[/bold].wav')
        assert sys.stdout is out
        time.sleep(0.2)
    assert '[bold]x[/bold].wav' in sys.stderr.getvalue() and '50' in sys.stderr.getvalue()


def test_the_generator_of_torch_is_left_alone(w, tmp_path):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    report('generate', w.model, '-o', tmp_path/'a.wav', '--duration', 0.3, '--seed', 1)
    assert torch.equal(before, torch.random.get_rng_state())
