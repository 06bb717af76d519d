"A base model takes an hour: killed or stopped, it goes on to the same tensors; several processes share its batches, and one of them writes."
import hashlib, json, os, socket, subprocess, sys
from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import distill.base as base
import distill.cli as cli
import distill.training as training
from distill.base import PretrainingWindows, pretrain, pretrain_prior
from distill.fitting import unfinished
from distill.dataset import load_collection
from distill.prior import PriorConfig
from distill.synthesis import write_collection
from distill.training import CheckpointError, Checkpoints
from distill.vqvae import VQVAEConfig

ROOT = Path(__file__).resolve().parent.parent
CODES = VQVAEConfig(codebook_size=64, channels=(4, 8, 8, 16), n_quantizers=2, search_steps=1, search_sweeps=0, listening_steps=1)
MODEL = dict(n_synthesised=4, cfg=CODES, codebook_batches=2)
PRIOR = dict(n_synthesised=4, n_dialects=2, n_excerpts=16, codes=CODES, cfg=PriorConfig(d_model=32, n_layers=1, n_heads=1, dropout=0.1, gap_share=0.5))
STEPS = 8


def be_small(setattr):
    setattr(base, 'GUESS_ROWS', 50)
    setattr(torch.cpu, '_is_avx512_bf16_supported', lambda: False)
    setattr(base, 'pretrain', partial(pretrain, **MODEL))
    setattr(base, 'pretrain_prior', partial(pretrain_prior, **PRIOR))


@pytest.fixture(autouse=True)
def small(monkeypatch): be_small(monkeypatch.setattr)


@pytest.fixture(scope='module')
def sounds(tmp_path_factory):
    return write_collection(tmp_path_factory.mktemp('pretrain')/'sounds', n_files=6, seed=3)


def learn(sounds, checkpoints=None, stop=lambda: False):
    "Both parts"
    how = dict(device='cpu', should_stop=stop, checkpoints=checkpoints)
    model = pretrain(sounds, steps=STEPS, **how, **MODEL)
    return model if stop() else pretrain_prior(model, sounds, steps=STEPS, **how, **PRIOR)


def digest(made):
    h = hashlib.sha256()
    for name, x in sorted(made.tensors.items()): h.update(name.encode() + x.numpy().tobytes())
    return h.hexdigest()


@pytest.fixture(scope='module')
def straight(sounds):
    with pytest.MonkeyPatch.context() as patch:
        be_small(patch.setattr)
        return learn(sounds)


# --- going on
def test_the_pool_is_made_again_from_its_counters(sounds):
    "However often all of its sounds have been replaced"
    windows = lambda: PretrainingWindows(load_collection(sounds), 2, seed=1, n_synthesised=3, every=1)
    for drawn in (0, 1, 2, 3, 7, 11):
        straight, again = windows(), windows()
        for _ in range(drawn): next(straight)
        again.load_state_dict(json.loads(json.dumps(straight.state_dict())))
        assert (again.made, again.batches) == (straight.made, straight.batches) and all(torch.equal(a, b) for a, b in zip(again.mels, straight.mels))
        assert torch.equal(next(again).mel, next(straight).mel)


class Killed(BaseException): pass


def test_killed_and_resumed(sounds, straight, tmp_path, monkeypatch, kills=(2, 6, 9, 14)):
    "In either sitting, after the dialect and in the prior; there is a checkpoint after every step: 4 and 4 of the base model, one of the second dialect, 8 of the prior"
    written, save = [], Checkpoints.save
    def save_and_die(self, *args):
        path = save(self, *args)
        written.append(path)
        if len(written) in kills: raise Killed
        return path
    monkeypatch.setattr(Checkpoints, 'save', save_and_die)
    for _ in kills:
        with pytest.raises(Killed): learn(sounds, Checkpoints(tmp_path, 0))
    made = learn(sounds, Checkpoints(tmp_path, 0))
    assert len(written) == 17 and digest(made) == digest(straight)
    assert made.about['steps'] == straight.about['steps'] == [4, 4] and made.about['prior'] == straight.about['prior']


@pytest.mark.parametrize('after, where', [(2, 'base 1'), (6, 'base 2'), (18, 'prior')])
def test_stopped_and_resumed(sounds, straight, tmp_path, after, where):
    "What follows a sitting that was cut short leaves no checkpoint to go on from"
    asked = iter(range(10**6))
    first = learn(sounds, Checkpoints(tmp_path, 0), lambda: next(asked) >= after)
    assert where in unfinished(Checkpoints(tmp_path))
    assert digest(first) != digest(straight) and digest(learn(sounds, Checkpoints(tmp_path, 0))) == digest(straight)


def run(sounds, target, *args, code=0):
    "`distill pretrain` in this process, and its answer"
    done = CliRunner().invoke(cli.app, ['pretrain', str(sounds), '-o', str(target), '--steps', str(STEPS), '--device', 'cpu', '--json', *args], prog_name='distill')
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def test_the_command_goes_on(sounds, straight, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(base, 'pretrain_prior', lambda *args, **kw: 1/0)
        run(sounds, tmp_path/'a', code=1)
    assert 'stage base 2, step 4' in run(sounds, tmp_path/'a', code=1)['error']
    run(sounds, tmp_path/'a', '--resume')
    assert digest(base.load_base(tmp_path/'a.safetensors')) == digest(straight)
    assert [p.name for p in tmp_path.iterdir()] == ['a.safetensors']
    monkeypatch.setattr(base, 'pretrain', None)
    assert run(sounds, tmp_path/'a', '--resume')['finished']                                  # and so is not trained again


def test_what_was_cut_short_gives_way(straight, tmp_path, monkeypatch):
    "To what went on from it, and to nothing else; asked is who hears of it from another process"
    target, rest, step = tmp_path/'a.safetensors', tmp_path/'a-unfinished.safetensors', tmp_path/'a.safetensors.checkpoints'/'stage-prior'/'step-00000004.safetensors'
    step.parent.mkdir(parents=True)
    step.touch()
    asked = lambda yes: monkeypatch.setattr(training, 'asked_of_any', lambda stop: yes)
    made = lambda number: monkeypatch.setattr(base, 'pretrain', lambda *args, **kw: straight._replace(about=dict(straight.about, seed=number, stopped='asked to')))  # as what it started from
    there = lambda path: tuple(map(base.load_base(path).about.get, ('seed', 'stopped')))
    def go(number, yes, *args, code=143):
        made(number), asked(yes)
        return run(tmp_path, target, '--prior-minutes', '0', '--resume', *args, code=code)
    assert go(1, True)['model'] == str(target) and there(target) == (1, 'asked to') and step.exists()
    assert 'kept' not in go(2, True) and there(target) == (2, 'asked to') and not rest.exists()
    assert go(3, True, '--start', str(target))['kept'] == str(target) and there(target) == (2, 'asked to') and there(rest) == (3, 'asked to')
    assert not go(4, False, '--start', str(rest), code=0)['interrupted'] and there(target) == (4, None) and rest.exists() and not step.exists()
    step.parent.mkdir(parents=True)
    step.touch()
    assert go(5, True)['model'] == str(rest) and there(target) == (4, None) and there(rest) == (5, 'asked to')
    go(6, False, code=0)
    assert there(target) == (6, None) and [p.name for p in tmp_path.iterdir()] == [target.name]


def test_a_prior_goes_on_with_its_own_base_model(sounds, straight, tmp_path):
    learn = lambda model: pretrain_prior(model, sounds, steps=1, device='cpu', checkpoints=Checkpoints(tmp_path, 0), **PRIOR | dict(n_dialects=1))
    learn(straight)
    with pytest.raises(CheckpointError, match='base was'): learn(straight._replace(tensors={name: x + 1 for name, x in straight.tensors.items()}))
    learn(straight._replace(about=dict(straight.about, created='later')))


# --- several processes
def worker(sounds, out):
    "One of two: `distill pretrain`, small; what it has written, how many rows it had, how the losses went, and what the codebooks were"
    be_small(setattr)
    rows, losses, books, written = [], [], [], []
    class Counted(base.Pretraining):
        def forward(self, batch):
            rows.append(len(batch.mel))
            loss = super().forward(batch)
            losses.append(loss.item())
            return loss
    fit_codebooks, save = base.fit_codebooks, base.save_base
    def fit(*args):
        books.append(fit_codebooks(*args))
        return books[-1]
    base.Pretraining, base.fit_codebooks = Counted, fit
    base.save_base = lambda *args: written.append(1) or save(*args)
    try: cli.app(['pretrain', sounds, '-o', str(Path(out)/'two'), '--steps', str(STEPS), '--device', 'cpu', '--json'], prog_name='distill', standalone_mode=False)
    finally:
        report = dict(rows=rows, losses=losses, written=len(written), books=[hashlib.sha256(b.numpy().tobytes()).hexdigest() for b in books])
        (Path(out)/f"rank-{os.environ['RANK']}").write_text(json.dumps(report), encoding='utf-8')


def test_two_processes_share_the_batches_and_one_writes(sounds, straight, tmp_path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES='', WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free.getsockname()[1]))
    start = lambda rank: subprocess.Popen([sys.executable, __file__, str(sounds), str(tmp_path)], env=dict(env, RANK=rank, LOCAL_RANK=rank), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    both = [start(rank) for rank in '01']
    (out, err), (nothing, trouble) = (process.communicate(timeout=300) for process in both)
    assert [process.returncode for process in both] == [0, 0], (err + trouble)[-3000:]
    first, second = (json.loads((tmp_path/f'rank-{i}').read_text(encoding='utf-8')) for i in range(2))
    assert {*first['rows'], *second['rows']} == {8} and first['losses'] != second['losses']
    assert (first['written'], second['written']) == (1, 0) and (out.count('\n'), nothing) == (1, '')
    assert first['books'] == second['books'] and len(first['books']) > 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ['rank-0', 'rank-1', 'two.safetensors']
    about = json.loads(out)
    assert about['held_out_log_mel_l1'] == pytest.approx(straight.about['held_out_log_mel_l1'], rel=0.02) and about['prior']['steps'] == straight.about['prior']['steps']


if __name__ == '__main__': worker(*sys.argv[1:])
