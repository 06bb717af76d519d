"A fit that is killed without warning and resumed ends with the same bytes as one that was left alone."
import hashlib, json, os, random, subprocess, sys, time
from pathlib import Path

import pytest

from distill.dataset import load_collection
from distill.synthesis import write_collection
from distill.training import Budget, Checkpoints, TrainingConfig, train_vqvae
from distill.vqvae import VQVAEConfig

NETWORK = VQVAEConfig(codebook_size=32, channels=(8, 16, 32, 64), dropout=0.1)
CONFIG = TrainingConfig(batch_size=8, validations=8, precision='fp32')
STEPS = 60


def digest(model):
    h = hashlib.sha256()
    for name, weights in sorted(model.state_dict().items()): h.update(name.encode() + weights.numpy().tobytes())
    return h.hexdigest()


def fit(sounds, checkpoints, seconds=0, steps=STEPS, progress=None, should_stop=lambda: False, on_event=None):
    kept = Checkpoints(checkpoints, every_seconds=seconds)
    return train_vqvae(load_collection(sounds), NETWORK, CONFIG, Budget(steps=steps), 'cpu', progress, should_stop,
                       checkpoints=kept, on_event=on_event)


def worker(sounds, checkpoints):
    "A process that may be killed: says where it begins, then a line at every step, and at the end what it has learned"
    say = lambda **what: print(json.dumps(what), flush=True)
    model, result = fit(sounds, checkpoints, progress=lambda fraction, text: say(fraction=fraction),
                        on_event=lambda e: e['event'] == 'start' and say(start=e['step']))
    say(weights=digest(model), steps=result.steps, scores=[(r['step'], r['loss'], r['score']) for r in result.history])


def start(sounds, folder):
    env = dict(os.environ, OMP_NUM_THREADS='1',
               PYTHONPATH=os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get('PYTHONPATH', '')]))
    return subprocess.Popen([sys.executable, __file__, str(sounds), str(folder)], env=env, text=True, stdout=subprocess.PIPE)


def finish(process):
    "What a process says that is left alone"
    with process: lines = [json.loads(line) for line in process.stdout]
    assert process.returncode == 0
    return lines


@pytest.fixture(scope='module')
def sounds(tmp_path_factory):
    return write_collection(tmp_path_factory.mktemp('sounds'), n_files=8, seed=1)


@pytest.fixture(scope='module')
def straight(sounds, tmp_path_factory):
    "What the undisturbed run ends with"
    return finish(start(sounds, tmp_path_factory.mktemp('straight')))[-1]


def kill(sounds, folder, at):
    "Start or resume a run, and kill it at some moment after step `at`: the step that it began with"
    process = start(sounds, folder)
    first = json.loads(process.stdout.readline())['start']
    for _ in range(max(0, at - first)): process.stdout.readline()
    time.sleep(random.uniform(0, 0.1))
    process.kill()
    process.communicate()
    return first


def test_killed_again_and_again(sounds, straight, tmp_path):
    "One run, killed at four moments"
    begun = [kill(sounds, tmp_path, random.randint(15 * i + 1, 15 * i + 13)) for i in range(4)]    # not before there is a checkpoint
    first, *_, end = finish(start(sounds, tmp_path))
    print('resumed at steps', begun, first['start'])
    assert end == straight
    assert first['start'] > begun[1] > 0, 'it began anew each time: nothing is shown'


def test_what_is_finished_stays_as_it_is(sounds, tmp_path):
    (first, _), (second, result) = (fit(sounds, tmp_path, 30, steps=20) for _ in range(2))
    assert digest(first) == digest(second) and result.history


@pytest.mark.slow
def test_25_of_25(sounds, straight, tmp_path):
    "Twenty-five runs, each killed once"
    good, resumed_at = 0, []
    for i in range(25):
        kill(sounds, tmp_path/str(i), random.randint(0, STEPS - 1))
        first, *_, end = finish(start(sounds, tmp_path/str(i)))
        good, resumed_at = good + (end == straight), [*resumed_at, first['start']]
    print(f'{good} of 25 the same, resumed at steps {sorted(resumed_at)}')
    assert good == 25


if __name__ == '__main__': worker(*sys.argv[1:])
