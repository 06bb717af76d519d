"Two processes that train together do what one does with the whole batch: the same losses, the same codebooks, one file."
import json, math, os, socket, subprocess, sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from distill.dataset import MelWindows, load_collection
from distill.prior import CodeExcerpt, CodePrior, NextCode, PackedExcerpts, PriorConfig, fit_guess, prior_training_config
from distill.synthesis import write_collection
from distill.training import (Budget, Checkpoints, Objective, Reconstruction, TrainingConfig, own_share, pick_device,
                              processes, train, train_vqvae)
from distill.vqvae import ConvVQVAE, VQVAEConfig

STEPS = 60
CONFIG = TrainingConfig(batch_size=16, validations=6, precision='fp32', patience=1)
NETWORK = VQVAEConfig(codebook_size=32, channels=(8, 16, 32, 64), dead_code_share=0.5)


class Slope(Objective):
    "Something small to learn, which one process cannot for a moment: its fifth batch is no number"
    name = 'a slope'

    def __init__(self, spoilt):
        super().__init__()
        self.slope, self.left = nn.Parameter(torch.zeros(())), 5 if spoilt else math.inf

    def forward(self, batch):
        self.left -= 1
        return (self.slope * batch - 7 * batch).square().mean() * (1 if self.left else math.nan)

    def score(self): return (self.slope.item() - 7) ** 2


def slope(spoilt):
    "What it went back for, and what it ended with"
    objective = Slope(spoilt)
    result = train(objective, iter(lambda: torch.ones(3), None), replace(CONFIG, learning_rate=0.1), Budget(steps=20), 'cpu')
    return result.notes, objective.slope.item()


class Watched(Reconstruction):
    "Keeps the loss of every step, the codebooks before it, and how many codes were replaced"
    books, losses, replaced = (), (), 0

    def start_step(self, fraction):
        super().start_step(fraction)
        self.books = [*self.books, self.model.quantizer.codebooks.clone()]

    def forward(self, batch):
        loss = super().forward(batch)
        self.losses = [*self.losses, loss.detach()]
        return loss


def count_replacements(objective):
    for layer in objective.model.quantizer.vq.layers:
        book = layer._codebook

        def replace_some(samples, batch_mask, seq_mask=None, book=book, real=book.replace):
            objective.replaced += int(batch_mask.sum())
            real(samples, batch_mask, seq_mask)
        book.replace = replace_some


def learn(sounds, checkpoints, events):
    "The loop, on a share of each batch; the model is there before it is known that there are two"
    collection = load_collection(sounds)
    torch.manual_seed(3)
    model = ConvVQVAE(NETWORK)
    model.norm.measure(collection.train, collection.spectrogram.cfg.log_floor)
    model.quantizer.set_batch(16 * 48)
    objective = Watched(model, collection.valid)
    count_replacements(objective)
    batches = own_share(MelWindows(collection, 16, 0), 16, 'cpu')
    result = train(objective, batches, CONFIG, Budget(steps=STEPS), 'cpu', checkpoints=Checkpoints(checkpoints),
                   on_event=events.append)
    return objective, result, collection


class WatchedCodes(NextCode):
    "Keeps the loss of every step"
    losses = ()

    def forward(self, batch):
        loss = super().forward(batch)
        self.losses = [*self.losses, loss.detach()]
        return loss


def learn_codes():
    "Stage 2 on codes that are the same for one process and for two, in rows of very different lengths; without dropout, whose masks differ"
    cfg = PriorConfig(codebook_size=16, n_quantizers=2, n_bands=4, max_columns=6, d_model=32, n_layers=1, n_heads=2, dropout=0.0, code_dim=4, gap_share=0.4)
    drawn = torch.Generator().manual_seed(5)
    long = lambda n: (torch.arange(n)[:, None] + torch.randint(16, (8,), generator=drawn)) % 16
    excerpts = [CodeExcerpt(long(n), begins=False, ends=n < 6) for n in (1, 1, 2, 6, 6, 1, 3, 6) * 4]
    torch.manual_seed(4)
    prior = CodePrior(cfg)
    prior.set_vectors(torch.randn(2, 16, 4))
    fit_guess(prior, excerpts)
    objective = WatchedCodes(prior, excerpts[:8])
    batches = own_share(PackedExcerpts(excerpts, cfg, 8, 0), 8, 'cpu')
    result = train(objective, batches, prior_training_config(batch_size=8, learning_rate=3e-3, validations=6, precision='fp32', patience=1), Budget(steps=STEPS), 'cpu')
    return torch.stack(objective.losses), [r['loss'] for r in result.history], result.history[-1]['score']


def worker(sounds, out):
    "One of two processes, as `torchrun` starts them"
    events = []
    objective, result, collection = learn(sounds, Path(out)/'checkpoints', events)
    state = processes(pick_device('cpu'))
    mine = torch.stack(objective.books)
    theirs = [torch.empty_like(mine) for _ in range(state.num_processes)]
    distributed.all_gather(theirs, mine)
    equal = [int(s) for s in range(STEPS) if torch.equal(theirs[0][s], theirs[1][s])]
    losses = torch.stack(objective.losses)
    distributed.all_reduce(losses)
    weights = torch.cat([v.flatten().double() for v in objective.state_dict().values()])
    both = [torch.empty_like(weights) for _ in range(2)]
    distributed.all_gather(both, weights)
    # the whole of stage 1 as well, each process drawing windows of its own, and going on from a checkpoint
    own = next(own_share(MelWindows(collection, 16, 0), 16, 'cpu')).mel
    windows = [torch.empty_like(own) for _ in range(2)]
    distributed.all_gather(windows, own)
    cfg, steps, stop_at = replace(CONFIG, validations=2), 12, iter(range(100))
    fit = lambda folder, stop: train_vqvae(collection, NETWORK, cfg, Budget(steps=steps), 'cpu', should_stop=stop,
                                           checkpoints=Checkpoints(Path(out)/folder))[0].state_dict()
    straight = fit('straight', lambda: False)
    fit('again', lambda: state.process_index == 1 and next(stop_at) == 4)               # only one of the two is asked to stop
    again = fit('again', lambda: False)
    notes, ended = slope(state.process_index == 1)
    own_losses, curve, score = learn_codes()
    code_losses = own_losses.clone()
    distributed.all_reduce(code_losses)
    report = dict(code_losses=(code_losses / 2).tolist(), own_code_losses=own_losses.tolist(), code_curve=curve, code_score=score, notes=notes, slope=ended, losses=(losses / 2).tolist(), history=result.history, equal=equal, replaced=objective.replaced, same_weights=torch.equal(*both),
                  events=[e['event'] for e in events], windows_differ=not torch.equal(*windows), share=len(own),
                  changed=[k for k in straight if not torch.equal(straight[k], again[k])],
                  norms=[type(m).__name__ for m in objective.modules() if 'forward' in vars(m)])
    Path(out, f'rank-{state.process_index}.json').write_text(json.dumps(report), encoding='utf-8')


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "The reports of one process and of two"
    here = tmp_path_factory.mktemp('two')
    sounds = write_collection(here/'sounds', n_files=8, seed=1)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = dict(os.environ, WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), OMP_NUM_THREADS='1',
               PYTHONPATH=os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get('PYTHONPATH', '')]))
    both = [subprocess.Popen([sys.executable, __file__, str(sounds), str(here)], stderr=subprocess.PIPE, text=True,
                             env=dict(env, RANK=str(r), LOCAL_RANK=str(r))) for r in range(2)]
    events = []
    objective, result, _ = learn(sounds, here/'alone', events)
    try:
        for process in both: assert process.wait(timeout=240) == 0, process.stderr.read()[-3000:]
    finally:
        for process in both: process.kill()
    reports = [json.loads((here/f'rank-{r}.json').read_text(encoding='utf-8')) for r in range(2)]
    return dict(folder=here, alone=result, objective=objective, two=reports)


def test_the_losses_are_those_of_one_process(runs):
    for mine in runs['two']:
        alone = [loss.item() for loss in runs['objective'].losses]
        assert len(alone) == STEPS and alone[-1] < 0.7 * alone[0]
        assert mine['losses'] == pytest.approx(alone, rel=0.01)
        assert [r['loss'] for r in mine['history']] == pytest.approx([r['loss'] for r in runs['alone'].history], rel=0.01)


def test_the_losses_of_stage_2_are_those_of_one_process(runs):
    losses, curve, score = learn_codes()
    assert len(losses) == STEPS and losses[-1] < 0.7 * losses[0]
    for mine in runs['two']:
        assert mine['code_losses'] == pytest.approx(losses.tolist(), rel=0.002)
        assert mine['code_curve'] == pytest.approx(curve, rel=0.002) and mine['code_score'] == pytest.approx(score, rel=0.002)
    first, second = (mine['own_code_losses'] for mine in runs['two'])
    assert max(abs(a - b) / b for a, b in zip(first, second)) > 0.1, 'the two have about the same to do: the test shows nothing'


def test_codebooks_are_equal_at_every_step(runs):
    for mine in runs['two']: assert mine['equal'] == list(range(STEPS))
    assert runs['two'][0]['same_weights']
    assert runs['two'][0]['replaced'] == runs['two'][1]['replaced'] > 0, 'no code was ever replaced: the test shows nothing'


def test_only_the_first_writes_and_reports(runs):
    first, second = runs['two']
    assert first['events'][0] == 'start' and 'validation' in first['events'] and not second['events']
    assert len([*(runs['folder']/'checkpoints').iterdir()]) <= 4
    assert first['history'] != [] and [r['score'] for r in first['history']] == [r['score'] for r in second['history']]


def test_each_draws_its_own_share(runs):
    for mine in runs['two']: assert mine['windows_differ'] and mine['share'] == 8


def test_what_spoils_one_sends_all_back(runs):
    first, second = runs['two']
    assert first['notes'] == second['notes'] and 'at step 4: back' in first['notes'][0] and len(first['notes']) == 1
    assert first['slope'] == second['slope'] > 0.2


def test_two_go_on_to_the_same_bytes(runs):
    for mine in runs['two']: assert mine['changed'] == []


def test_the_module_is_as_before_afterwards(runs):
    for mine in runs['two']: assert mine['norms'] == []
    assert runs['alone'].steps == STEPS


if __name__ == '__main__': worker(*sys.argv[1:])
