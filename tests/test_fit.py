"What may happen to `distill fit`: it is killed, told to stop, runs out of disk, loses a file or meets a sound that is no number."
import errno, hashlib, inspect, json, os, random, signal, subprocess, sys, time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

import distill.cli as cli
from distill.synthesis import write_collection

ROOT = Path(__file__).resolve().parent.parent
SMALL = dict(vqvae=dict(codebook_size=16, channels=(4, 8, 8, 16), search_steps=1, search_sweeps=0), prior=dict(d_model=32, n_heads=2, n_layers=1, dropout=0.0))    # no dropout: two processes draw other masks than one
FIT = ['--epochs', '12', '--device', 'cpu', '--save-every', '0', '--no-library']


def be_small(fitting, setattr):
    def small(f, parts, *args, **kw):                                 # where nothing else is asked for
        given = inspect.signature(f).bind_partial(*args, **kw).arguments
        return f(**given | {part: given.get(part) or SMALL[part] for part in parts})
    for name, parts in ('fit_model', ['vqvae', 'prior']), ('fit_codes', ['vqvae']), ('fit_prior', ['prior']):
        setattr(fitting, name, partial(small, getattr(fitting, name), parts))
    import torch
    import distill.prior as prior
    setattr(torch.cpu, '_is_avx512_bf16_supported', lambda: False)    # float32, or rounding alone would make one curve two
    setattr(prior, 'extract_code_sequences', partial(few_excerpts, prior.extract_code_sequences))
    setattr(fitting, 'train_prior', prior.train_prior)


def few_excerpts(extract, model, windows, columns, n_windows, *args): return extract(model, windows, columns, 48, *args)


def weights(path):
    "A digest of the weights in a model file, not of its date"
    from safetensors import safe_open
    h = hashlib.sha256()
    with safe_open(path, 'pt') as f:
        for name in sorted(f.keys()): h.update(name.encode() + f.get_tensor(name).numpy().tobytes())
    return h.hexdigest()


def run(*args): return CliRunner().invoke(cli.app, [*map(str, args)], prog_name='distill')


@pytest.fixture(autouse=True)
def small(monkeypatch):
    import distill.fitting as fitting
    be_small(fitting, monkeypatch.setattr)


@pytest.fixture(scope='module')
def sounds(tmp_path_factory):
    return write_collection(tmp_path_factory.mktemp('fit')/'sounds', n_files=6, seed=3)


@pytest.fixture(scope='module')
def straight(sounds, tmp_path_factory):
    "What an undisturbed fit ends with: its weights, and how many steps there were"
    import distill.fitting as fitting
    out = tmp_path_factory.mktemp('straight')/'a.distill'
    with pytest.MonkeyPatch.context() as patch:
        be_small(fitting, patch.setattr)
        done = run('fit', sounds, '-o', out, *FIT, '--json', '--events', out.with_name('events'))
    assert done.exit_code==0, done.stderr
    answer = json.loads(done.stdout)
    return dict(answer, weights=weights(out), stderr=done.stderr, events=out.with_name('events').read_text(encoding='utf-8'), out=out)


def test_stage_2_begins_with_what_the_base_prior_knows(sounds, monkeypatch):
    "Where stage 1 began with the same base model, and nobody asks for another shape; what it knows is worth much from the first step on"
    import distill.fitting as fitting
    begun, start = [], fitting.start_prior
    monkeypatch.setattr(fitting, 'start_prior', lambda prior, base: begun.append(base.about['prior']['bits_per_code']) or start(prior, base))
    quick = dict(search_steps=1, search_sweeps=0)
    def fit(**how):
        made = fitting.fit_model(sounds, **dict(dict(epochs=1, device='cpu', vqvae=quick, prior=dict(dropout=0.0)), **how))
        return made.metadata['scores']['bits_per_code'], made.prior_config.d_model
    warm, width = fit()
    assert len(begun) == 1 and begun[0] < 6 and width == 256                            # so few files get 128 otherwise
    assert [fit(**how)[1] for how in (dict(from_scratch=True), dict(prior=SMALL['prior']), dict(prior=dict(n_layers=1)))] == [128, 32, 128]
    assert len(begun) == 1
    monkeypatch.setattr(fitting, 'start_prior', lambda prior, base: None)
    assert warm < fit()[0] - 0.2, warm


class Stop(Exception): pass


@pytest.fixture
def at(monkeypatch):
    "Calls a function once when the progress says what is wanted"
    def when(words, do):
        left = [do]
        @contextmanager
        def watch(minutes=None, quiet=False):
            def tell(fraction, text):
                if words in text and left: left.pop()()
            yield tell, None
        monkeypatch.setattr(cli, 'watch', watch)
    return when


# --- what programs are told
def test_events_are_lines_of_json(straight):
    lines = [json.loads(line) for line in straight['events'].splitlines()]
    on_stderr = [json.loads(line) for line in straight['stderr'].splitlines() if line.startswith('{')]
    assert lines==on_stderr
    kinds = [e['event'] for e in lines]
    assert kinds[0]=='doctor' and {'start', 'validation', 'checkpoint', 'stop', 'scores'} <= set(kinds)
    assert {e['stage'] for e in lines}=={'', 'stage 1', 'stage 2'}
    assert lines[0]['diagnosis']['ready'] and 'example' not in kinds
    assert 'Verdict: ready' in straight['stderr'] and 'a.distill.checkpoints' in straight['stderr']    # where they are


def test_files_that_are_not_used_are_named_once(sounds, tmp_path):
    "By the command line before it begins, by the views of Python; `train` tells programs, too"
    import shutil
    import distill.fitting as fitting
    from distill.api import training_view
    folder, events = shutil.copytree(sounds, tmp_path/'sounds'), tmp_path/'events'
    (folder/'broken.wav').write_bytes(b'nothing')
    done = run('train', folder, '-o', tmp_path/'a', '--epochs', 1, '--no-library', '--events', events)
    assert done.exit_code==0 and done.stdout.count('not used: broken.wav') == 2 and 'not used' not in done.stderr    # before, and in the report
    told = [json.loads(line) for line in events.read_text(encoding='utf-8').splitlines()]
    assert [e['event'] for e in told].count('doctor') == 1 and told[0]['diagnosis']['skipped'] == 1
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr('sys.stderr', type('Lines', (), dict(write=lambda self, text: said.append(text), flush=lambda self: None, isatty=lambda self: False))())
        with training_view(True, None) as (tell, show): fitting.fit_model(folder, epochs=1, device='cpu', progress_callback=tell, on_event=show)
    assert ''.join(said).count('1 of 7 files is not used: broken.wav (') == 1


def test_a_time_box_tells_how_many_steps_it_has_room_for(sounds, straight):
    import distill.fitting as fitting
    told = []
    loaded = fitting.fit_codes(sounds, minutes=0.15, device='cpu', from_scratch=True, on_event=told.append, training=dict(patience=1.0, validations=2))
    pace, = (e for e in told if e['event']=='pace')
    assert pace['stage']=='stage 1' and pace['enough']==fitting.diagnose(fitting.load_collection(sounds)).tier.steps
    assert 0.3 < pace['steps']/loaded.metadata['steps'][0] < 3, (pace, loaded.metadata['steps'])
    assert 'pace' not in straight['events']                           # epochs have no time box


def test_no_checkpoints_are_left(straight): assert sorted(p.name for p in straight['out'].parent.iterdir())==['a.distill', 'events']


def test_a_finished_fit_is_not_begun_again(straight, sounds):
    before = straight['out'].read_bytes()
    done = run('fit', sounds, '-o', straight['out'], *FIT, '--resume')
    assert done.exit_code==0 and 'is finished' in done.stdout and straight['out'].read_bytes()==before


def test_tensorboard_is_optional(sounds, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    done = run('fit', sounds, '-o', tmp_path/'a', *FIT, '--tensorboard', tmp_path/'curves', '--json')
    assert done.exit_code==1 and 'pip install tensorboard' in json.loads(done.stdout)['error'] and not (tmp_path/'a.distill').exists()


# --- being told to stop
@pytest.mark.parametrize('number, words', [(signal.SIGINT, 'stage 1: step 5,'), (signal.SIGTERM, 'stage 2: step 3,')])
def test_stopped_and_resumed(sounds, straight, tmp_path, at, number, words):
    out = tmp_path/'a.distill'
    at(words, lambda: signal.raise_signal(number))
    done = run('fit', sounds, '-o', out, *FIT)
    assert done.exit_code==128 + number and done.stderr.rstrip().endswith('the same command with --resume goes on')
    refused = run('fit', sounds, '-o', out, *FIT)
    assert refused.exit_code==1 and f'not finished ({words[:7]}, step ' in refused.stderr and '--no-resume' in refused.stderr
    done = run('fit', sounds, '-o', out, *FIT, '--resume')
    assert done.exit_code==0 and weights(out)==straight['weights']
    assert [p.name for p in tmp_path.iterdir()]==['a.distill']


def test_another_fit_is_named(sounds, tmp_path, at):
    "Other settings, other sounds: what is different, in words; and the unfinished fit is still there"
    import shutil
    folder, out = shutil.copytree(sounds, tmp_path/'sounds'), tmp_path/'a.distill'
    at('stage 1: step 5,', lambda: signal.raise_signal(signal.SIGINT))
    assert run('fit', folder, '-o', out, *FIT).exit_code==130
    for change, words in (['--seed', 1], 'training.seed was 0 and is 1'), (['--eq', 3], 'dataset.eq_db was 0.0 and is 3.0'), (['--epochs', 9], 'steps was'):
        done = run('fit', folder, '-o', out, *FIT, '--resume', *change)
        assert done.exit_code==1 and words in done.stderr, done.stderr
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*.flac'))
    kept = (folder/names[0]).read_bytes()
    (folder/names[0]).write_bytes((folder/names[1]).read_bytes())
    (folder/names[2]).rename(folder/'new.flac')
    done = run('fit', folder, '-o', out, *FIT, '--resume')
    assert done.exit_code==1
    for words in f'{names[0]} has changed', f'{names[2]} is gone', 'new.flac is new': assert words in done.stderr
    (folder/names[0]).write_bytes(kept)
    (folder/'new.flac').rename(folder/names[2])
    assert run('fit', folder, '-o', out, *FIT, '--resume').exit_code==0
    done = run('fit', folder, '-o', tmp_path/'b.distill', *FIT, '--no-resume')
    assert done.exit_code==0 and weights(out)==weights(tmp_path/'b.distill')


# --- a disk that is full, a file that is gone, a sound that is none
def full(*args): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_no_room_for_checkpoints(sounds, straight, tmp_path, monkeypatch):
    "It goes on, says so, and ends with the model"
    import distill.training as training
    monkeypatch.setattr(training, 'write_atomically', full)
    done = run('fit', sounds, '-o', tmp_path/'a', *FIT, '--json')
    answer = json.loads(done.stdout)
    assert done.exit_code==0 and weights(tmp_path/'a.distill')==straight['weights']
    assert any('no checkpoint' in note and 'space' in note.lower() for note in answer['notes'])


class FullFile:
    "Takes nothing, and cannot even be closed"
    write = flush = close = full


def test_no_room_for_events(sounds, straight, tmp_path, monkeypatch):
    "That is said once; the fit goes on, and others are told what happens"
    monkeypatch.setattr(cli, 'open', lambda *args, **kw: FullFile(), raising=False)
    with pytest.warns(UserWarning, match='cannot write .*events.*the disk is full.*goes on') as said:
        done = run('fit', sounds, '-o', tmp_path/'a', *FIT, '--json', '--events', tmp_path/'events')
    assert done.exit_code==0 and weights(tmp_path/'a.distill')==straight['weights'] and len([w for w in said if 'events' in str(w.message)])==1
    kinds = [json.loads(line)['event'] for line in done.stderr.splitlines() if line.startswith('{')]
    assert kinds[0]=='doctor' and kinds[-1]=='scores'


@pytest.mark.parametrize('everywhere', [False, True])
def test_no_room_for_the_model(sounds, straight, tmp_path, monkeypatch, everywhere):
    "It is written elsewhere; and the checkpoints stay, so that nothing is lost even where there is no elsewhere"
    import distill.model as model
    write = model.write_atomically
    elsewhere = tmp_path/'elsewhere'
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(model, 'write_atomically', lambda path, data: full() if everywhere or Path(path).parent!=elsewhere else write(path, data))
    out = tmp_path/'a.distill'
    done = run('fit', sounds, '-o', out, *FIT, '--json')
    answer = json.loads(done.stdout)
    assert done.exit_code==1 and 'the disk is full' in answer['error'] and not out.exists()
    if everywhere: assert 'model' not in answer and '--resume' in answer['error']
    else: assert weights(answer['model'])==straight['weights'] and Path(answer['model'])==elsewhere/'a-rescued.distill'
    monkeypatch.setattr(model, 'write_atomically', write)
    assert run('fit', sounds, '-o', out, *FIT, '--resume').exit_code==0 and weights(out)==straight['weights']


def test_a_file_is_deleted_while_it_is_needed(sounds, straight, tmp_path, at, monkeypatch):
    "Without a cache and without room in memory, sounds are read again and again"
    import shutil
    import distill.dataset as dataset
    monkeypatch.setenv('DISTILL_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(dataset, 'IN_MEMORY_BYTES', 0)
    folder, out = shutil.copytree(sounds, tmp_path/'sounds'), tmp_path/'a.distill'
    def lose():
        for path in sorted(folder.rglob('*.flac')): path.rename(path.with_suffix('.lost'))
        shutil.rmtree(tmp_path/'cache')
    at('stage 1: step 5,', lose)
    done = run('fit', folder, '-o', out, *FIT)
    assert done.exit_code==1 and 'changed or removed' in done.stderr and 'go on from the last checkpoint' in done.stderr and not out.exists()
    for path in folder.rglob('*.lost'): path.rename(path.with_suffix('.flac'))
    done = run('fit', folder, '-o', out, *FIT, '--resume')
    assert done.exit_code==0 and weights(out)==straight['weights'], done.stderr


@pytest.mark.parametrize('bad, words', [({7}, 'back to the last good weights'), (range(7, 10**6), 'diverged')], ids=['once', 'for ever'])
def test_batches_that_are_no_numbers(sounds, tmp_path, monkeypatch, bad, words):
    from distill.dataset import MelWindows
    draw, drawn = MelWindows.__next__, [0]
    def spoilt(self):
        drawn[0] += self.batch_size > 1
        batch = draw(self)
        return batch._replace(mel=batch.mel*float('nan')) if self.batch_size > 1 and drawn[0] in bad else batch
    monkeypatch.setattr(MelWindows, '__next__', spoilt)
    done = run('fit', sounds, '-o', tmp_path/'a', *FIT, '--json')
    answer = json.loads(done.stdout)
    told = [e for line in done.stderr.splitlines() if line.startswith('{') and (e := json.loads(line))['event']=='rollback']
    assert len(told)==(1 if bad=={7} else 2) and 'not a number' in told[0]['text']
    said = ' '.join(answer['notes']) if done.exit_code==0 else answer['error']
    assert words in said and (done.exit_code==0)==(tmp_path/'a.distill').exists(), answer


# --- killed without a word
def fork(args, log):
    "A process that runs a command, without the seconds that imports take"
    if pid := os.fork(): return pid
    with open(log, 'w', encoding='utf-8') as f:
        os.dup2(f.fileno(), 1), os.dup2(f.fileno(), 2)
    try: cli.app([str(a) for a in args], prog_name='distill')
    except SystemExit as e: os._exit(e.code or 0)
    except BaseException: os._exit(99)
    os._exit(0)


def worker(sounds, folder, kills):
    "One fit, killed again and again at random moments, beside one that nobody disturbs; never trains itself, for it forks"
    import distill.fitting as fitting
    be_small(fitting, setattr)
    folder, kills = Path(folder), int(kills)
    straight, out = folder/'straight.distill', folder/'a.distill'
    assert os.waitpid(fork(['fit', sounds, '-o', straight, *FIT], folder/'log'), 0)[1]==0, (folder/'log').read_text(encoding='utf-8')
    written = lambda: {p.parent.name + '/' + p.stem for p in out.with_name('a.distill.checkpoints').glob('*/step-*')}
    at = []
    while len(at) < kills:
        before, steps = written(), random.randint(0, 4)
        pid = fork(['fit', sounds, '-o', out, *FIT, '--resume'], folder/'log')
        while len(written() - before) < min(3, steps) and os.waitpid(pid, os.WNOHANG)[0]==0: time.sleep(0.01)
        time.sleep(random.uniform(0, 0.3))
        if out.exists():    # it was done before the moment came: from the beginning, then
            with suppress(ChildProcessError): os.waitpid(pid, 0)
            assert weights(out)==weights(straight)
            out.unlink()
            continue
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        at.append(max(written(), default=''))
    code = os.waitpid(fork(['fit', sounds, '-o', out, *FIT, '--resume'], folder/'log'), 0)[1]
    print(json.dumps(dict(code=code, same=weights(out)==weights(straight), kills=len(at), at=at, left=sorted(p.name for p in folder.iterdir()))))


def killed(sounds, folder, kills):
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))
    done = subprocess.run([sys.executable, __file__, str(sounds), str(folder), str(kills)], env=env, capture_output=True, text=True, timeout=1500)
    assert done.returncode==0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(os.name=='nt', reason='no fork on Windows')
@pytest.mark.parametrize('kills', [4, pytest.param(25, marks=pytest.mark.slow)])
def test_killed_and_resumed(sounds, tmp_path, kills):
    found = killed(sounds, tmp_path, kills)
    print(found)
    assert found['code']==0 and found['same'] and found['kills']==kills and found['left']==['a.distill', 'log', 'straight.distill']


# --- several processes
TORCHRUN = ['torch.distributed.run', '--standalone', '--nproc-per-node', '2']
ACCELERATE = ['accelerate.commands.launch', '--multi_gpu', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no']


def launch(sounds, out, *args, by=TORCHRUN):
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES='')
    program = [sys.executable, '-m', *by, __file__, 'cli']
    return subprocess.run([*program, 'fit', str(sounds), '-o', str(out), *FIT, *args], env=env, capture_output=True, text=True, timeout=600)


def test_accelerate_launches_it(sounds, tmp_path):
    "As it does on a machine with two GPUs; the processes are told to use the CPU. One step, so that the codes are made after it, together"
    done = launch(sounds, tmp_path/'two.distill', '--epochs', '1', '--json', '--events', tmp_path/'events', by=ACCELERATE)
    assert done.returncode==0, done.stderr[-3000:]
    assert done.stdout.count('\n')==1 and json.loads(done.stdout)['device']=='cpu'
    events = [json.loads(line) for line in (tmp_path/'events').read_text(encoding='utf-8').splitlines()]
    assert [e['processes'] for e in events if e['event']=='start']==[2, 2]
    assert sorted(p.name for p in tmp_path.iterdir())==['events', 'two.distill']


def test_two_processes_write_one_file(sounds, straight, tmp_path):
    "The same losses as one process, told once"
    done = launch(sounds, tmp_path/'two.distill', '--json', '--events', tmp_path/'events')
    assert done.returncode==0, done.stderr[-3000:]
    assert done.stdout.count('\n')==1
    answer = json.loads(done.stdout)
    assert sorted(p.name for p in tmp_path.iterdir())==['events', 'two.distill']
    of = lambda text, stage: [e for e in map(json.loads, text.splitlines()) if e['event']=='validation' and e['stage']==stage]
    two, one = ((tmp_path/'events').read_text(encoding='utf-8'), straight['events'])
    assert [e['processes'] for e in map(json.loads, two.splitlines()) if e['event']=='start']==[2, 2]
    assert [e['loss'] for e in of(two, 'stage 1')]==pytest.approx([e['loss'] for e in of(one, 'stage 1')], rel=0.01)
    # the codes are those of another stage 1, by rounding: so the held-out curve has to agree; test_distributed compares every step on the same codes
    assert [e['score'] for e in of(two, 'stage 2')]==pytest.approx([e['score'] for e in of(one, 'stage 2')], rel=0.01)
    assert answer['scores']['log_mel_l1']==pytest.approx(straight['scores']['log_mel_l1'], rel=0.02)


if __name__ == '__main__':
    if sys.argv[1]=='cli':    # `python -m distill`, with small networks
        import distill.fitting as fitting
        be_small(fitting, setattr)
        cli.app(sys.argv[2:], prog_name='distill')
    else: worker(*sys.argv[1:])


# --- told to stop between and after the loops
class Asked:
    "Whether somebody asked to stop, from the moment on at which a function was called for the `n`th time; and how often it was called in all"
    def __init__(self, monkeypatch, module, name, n=1, counts=lambda *args: True):
        real, self.calls, self.n = getattr(module, name), 0, n
        def counted(*args, **kw):
            self.calls += counts(*args)
            return real(*args, **kw)
        monkeypatch.setattr(module, name, counted)

    def __call__(self): return self.calls >= self.n


def fit_two(sounds, **kw):
    import distill.fitting as fitting
    return fitting.fit_model(sounds, epochs=2, device='cpu', from_scratch=True, **kw)


@pytest.mark.parametrize('where, name', [('fitting', 'reconstruction_l1'), ('training', 'count_codes')], ids=['exam', 'health'])
def test_stop_is_heard_while_stage_1_is_measured(sounds, monkeypatch, where, name):
    "One more file, not all of them; it has the scores of its last validation, and stage 2 is not begun"
    import distill.fitting as fitting
    import distill.training as training
    from distill.dataset import DatasetConfig
    asked = Asked(monkeypatch, dict(fitting=fitting, training=training)[where], name)
    loaded = fit_two(sounds, should_stop=asked, dataset=DatasetConfig(valid_fraction=0.5))
    scores = loaded.metadata['scores']
    assert asked.calls == 1 and loaded.prior is None and loaded.metadata['stopped'] == ['asked to']
    assert scores['log_mel_l1'] == scores['log_mel_l1_nearest'] is not None and all(scores['codes_used']) and 'bits_per_code' not in scores


def test_a_stage_1_that_was_not_measured_is_not_finished(sounds, tmp_path, monkeypatch):
    "Going on measures it"
    import distill.fitting as fitting
    from distill.training import Checkpoints
    fit = lambda **kw: fitting.fit_codes(sounds, epochs=2, device='cpu', from_scratch=True, checkpoints=Checkpoints(tmp_path, 0), **kw)
    with monkeypatch.context() as patch: stopped = fit(should_stop=Asked(patch, fitting, 'reconstruction_l1'))
    done = fit()
    assert not fitting.is_finished(stopped) and fitting.is_finished(done) and stopped.fingerprint == done.fingerprint
    assert done.metadata['steps'] == stopped.metadata['steps']


@pytest.mark.parametrize('name, counts, calls', [('_encode_cuts', lambda *args: True, 1), ('encode_columns', lambda model, mels: len(mels) == 1, 2), ('random_gap', lambda *args: True, 100)],
                         ids=['excerpts', 'files', 'guess'])
def test_stop_is_heard_before_stage_2_has_a_step(sounds, straight, tmp_path, monkeypatch, name, counts, calls):
    "There is no prior then; and going on ends as if nothing had happened"
    import distill.fitting as fitting
    import distill.prior as prior
    from distill.training import Checkpoints
    steps = []
    fit = lambda **kw: fitting.fit_model(sounds, epochs=12, device='cpu', checkpoints=Checkpoints(tmp_path, 0), on_event=lambda e: steps.append(e), **kw)
    with monkeypatch.context() as patch:
        asked = Asked(patch, prior, name, 1, counts)
        loaded = fit(should_stop=asked)
    assert asked.calls == calls and loaded.prior is None and loaded.metadata['stopped'] == ['', 'asked to'] and not fitting.is_finished(loaded)
    assert loaded.metadata['scores']['log_mel_l1'] is not None and not any(e['event']=='start' and e['stage']=='stage 2' for e in steps)
    loaded = fit()
    loaded.save(tmp_path/'a.distill')
    assert weights(tmp_path/'a.distill') == straight['weights']


@pytest.mark.parametrize('n, known', [(1, False), (2, True)])
def test_stop_is_heard_while_stage_2_is_measured(sounds, monkeypatch, n, known):
    "What was not measured is left out, also where it is shown"
    import distill.fitting as fitting
    import distill.prior as prior
    asked, real = Asked(monkeypatch, prior, 'prior_bits', 10**9), prior.measure_bits
    def measure(*args):
        asked.n = asked.calls + n
        return real(*args)
    monkeypatch.setattr(prior, 'measure_bits', measure)
    loaded = fit_two(sounds, should_stop=asked)
    scores = loaded.metadata['scores']
    assert loaded.prior is not None and not fitting.is_finished(loaded) and asked.calls == 2 + asked.n - n
    assert 0 < scores['bits_per_code'] and 0 < scores['unigram_bits_per_code'] and bool(scores['bits_by_level']) == known
    assert scores['bits_per_code_by_the_second'] is None and scores['bits_in_a_gap'] == []
    assert any(line.startswith('Order') for line in cli.score_lines(scores, 16))
