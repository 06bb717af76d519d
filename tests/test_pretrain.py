"A base model takes an hour: killed or stopped, it goes on to the same tensors; several processes share its batches, and one of them writes."
import hashlib, json, os, subprocess, sys
from functools import partial
from pathlib import Path

import pytest
import torch

import distill.base as base
import distill.cli as cli
from distill.base import PretrainingWindows, pretrain, pretrain_prior
from distill.dataset import load_collection
from distill.prior import PriorConfig
from distill.synthesis import write_collection
from distill.training import Checkpoints
from distill.vqvae import VQVAEConfig

ROOT = Path(__file__).resolve().parent.parent
CODES = VQVAEConfig(codebook_size=64, channels=(4, 8, 8, 16), n_quantizers=2, search_steps=1, search_sweeps=0, listening_steps=1)
MODEL = dict(n_synthesised=4, cfg=CODES, codebook_batches=2)
PRIOR = dict(n_synthesised=4, n_dialects=2, n_excerpts=16, codes=CODES, cfg=PriorConfig(d_model=32, n_layers=1, n_heads=1, dropout=0.1, gap_share=0.5))
STEPS = 20


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


@pytest.mark.parametrize('kills', [[4], [13], [21], [25], [6, 15, 30]], ids=['first sitting', 'second', 'dialect', 'prior', 'all'])
def test_killed_and_resumed(sounds, straight, tmp_path, monkeypatch, kills):
    "There is a checkpoint after every step: 10 and 10 of the base model, one of the second dialect, 19 of the prior"
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
    assert len(written) == 40 and digest(made) == digest(straight)
    assert made.about['steps'] == straight.about['steps'] == [10, 10] and made.about['prior'] == straight.about['prior']


@pytest.mark.parametrize('after', [3, 13, 22, 30])
def test_stopped_and_resumed(sounds, straight, tmp_path, after):
    "What follows a sitting that was cut short leaves no checkpoint to go on from"
    asked = iter(range(10**6))
    first = learn(sounds, Checkpoints(tmp_path, 0), lambda: next(asked) >= after)
    assert digest(first) != digest(straight) and digest(learn(sounds, Checkpoints(tmp_path, 0))) == digest(straight)


def test_the_command_goes_on(sounds, tmp_path, monkeypatch):
    from typer.testing import CliRunner
    def run(name, *args, code=0):
        done = CliRunner().invoke(cli.app, ['pretrain', str(sounds), '-o', str(tmp_path/name), '--steps', '8', '--device', 'cpu', '--json', *args], prog_name='distill')
        assert done.exit_code == code, done.output
        return json.loads(done.stdout)
    run('straight')
    with monkeypatch.context() as patch:
        patch.setattr(base, 'pretrain_prior', lambda *args, **kw: 1/0)
        run('a', code=1)
    assert 'stage base 2, step 4' in run('a', code=1)['error']
    run('a', '--resume')
    assert digest(base.load_base(tmp_path/'a.safetensors')) == digest(base.load_base(tmp_path/'straight.safetensors'))
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.safetensors', 'straight.safetensors']


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
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES='')
    program = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', __file__, str(sounds), str(tmp_path)]
    done = subprocess.run(program, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path/f'rank-{i}').read_text(encoding='utf-8')) for i in range(2))
    assert {*first['rows'], *second['rows']} == {8} and first['losses'] != second['losses']
    assert (first['written'], second['written']) == (1, 0) and done.stdout.count('\n') == 1
    assert first['books'] == second['books'] and len(first['books']) > 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ['rank-0', 'rank-1', 'two.safetensors']
    about = json.loads(done.stdout)
    assert about['held_out_log_mel_l1'] == pytest.approx(straight.about['held_out_log_mel_l1'], rel=0.02) and about['prior']['steps'] == straight.about['prior']['steps']


if __name__ == '__main__': worker(*sys.argv[1:])
