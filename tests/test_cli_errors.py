"The command line when things go wrong: one clear line and 1, wrong usage and 2, and never a traceback."
import json, os, subprocess, sys

import numpy as np
import pytest
import soundfile as sf

import distill.cli as cli
import test_cli
from test_cli import ENV, run

w, small_networks = test_cli.w, test_cli.small_networks    # fixtures


def fails(*args, code=1):
    "Runs a command that must fail; its line, after checking that JSON says the same."
    done = run(*args)
    assert done.exit_code==code, (done.stdout, done.stderr)
    assert 'Traceback' not in done.stderr and 'should not happen' not in done.stderr
    told = json.loads((again := run(*args, '--json')).stdout)
    assert again.exit_code==code and again.stdout.count('\n')==1
    if code==1:
        line = done.stderr.splitlines()[-1]
        assert line==f"error: {told['error']}" and len(line)<400
    return ' '.join(done.stderr.split()) if code==2 else line


# --- wrong usage
OUT = ['-o', 'x.wav']
USAGE = [
    *[(['generate', 'm', *OUT, name, value], name) for name, values in {
        '--temperature': ['0', '0.09', '2.01', 'nan', 'hot', '1,3', '1,,1'], '--top-p': ['-0.1', '1.1', 'nan'], '--top-k': ['-1', '513', '1.5'],
        '--duration': ['0', '-1', 'nan', 'inf', '36000', 'automatic', '1,2'], '--overlap-ms': ['-1', '201', 'nan'], '--seed': ['-1', '1.5', str(2**53)],
        '--min-p': ['-0.1', '1.1', 'nan', ''], '--typical-p': ['2', 'x'], '--repetition-penalty': ['0.9', '2.1'], '--penalty-context': ['0', 'x'],
        '--argmax': ['maybe', 'yes,', '1'], '--stitch': ['glue'], '--prompt-seconds': ['0', '-1', 'nan', '1'],
        '--count': ['0', '-1', 'two'], '--bit-depth': ['8', '0'], '--sample-rate': ['0', '999999'], '--device': ['gpu', 'cuda:x'],
        '--format': ['aac'], '--preset': ['wild']}.items() for value in values],
    (['generate', 'm', *OUT, '--any-model'], '--any-model'),
    *[([command, 'sounds', '-o', 'm', name, value], name) for command in ('fit', 'train') for name, values in {
        '--minutes': ['0', '-1', 'nan', 'inf', 'x'], '--epochs': ['0', '-3', '1.5'], '--seed': ['-1'], '--device': ['tpu'],
        '--levels': ['0', '33', '1.5'], '--codes': ['1', '5000'], '--batch-size': ['0', '2000', 'x', '8,,8', '8,8,8'],
        '--learning-rate': ['0', '-0.001', '2', 'nan', '0.1,'], '--held-out': ['0', '1', 'nan']}.items() for value in values],
    *[([*command, name, value], name) for command in (['fit', 'sounds', '-o', 'm'], ['train-prior', 'sounds', 'm'], ['doctor', 'sounds'])
      for name, values in {'--width': ['8', '200', '4096'], '--layers': ['0', '33']}.items() for value in values],
    (['train', 'sounds', '-o', 'm', '--batch-size', '8,8'], 'give one number'), (['train-prior', 'sounds', 'm', '--learning-rate', '0.1,0.1'], 'give one number'),
    (['train', 'sounds', '-o', 'm', '--width', '64'], '--width'), (['train-prior', 'sounds', 'm', '--levels', '6'], '--levels'),
    (['evaluate', 'm', 'sounds', '--count', '-1'], '--count'), (['evaluate', 'm', 'sounds', '--seed', '-1'], '--seed'),
    (['evaluate', 'm', 'sounds', '--seed', str(2**53 - 1)], 'no room'), (['evaluate', 'm', 'sounds', '--page', 'x.html', '--count', '0'], '--page'),
    (['doctor', 'sounds', '--learning-rate', '0.1'], '--learning-rate'),
    (['train-prior', 'sounds', 'm', '--minutes', '0'], '--minutes'), (['train-prior', 'sounds', 'm', '--epochs', '0'], '--epochs'),
    (['demo', '--minutes', '0'], '--minutes'), (['bench', 'a', '--recipes', 'x'], '--recipes'), (['bench', '--recipes', 'x', '--minutes', '-1'], '--minutes'),
    (['decode', 'm', 'c', *OUT, '--bit-depth', '12'], '--bit-depth'), (['reconstruct', 'm', 'a', *OUT, '--format', 'm4a'], '--format'),
    (['fit', 'sounds'], '--out'), (['fit'], 'FOLDER'), (['generate', 'm'], '--out'), (['info'], 'MODEL'), (['doctor', 'a', 'b'], 'b'),
    (['generate', 'm', '-o', 'x.aac'], 'cannot write .aac'), (['generate', 'm', '-o', 'x.flac', '--bit-depth', '32'], 'flac holds'),
    (['generate', 'm', '-o', 'x.mp3', '--sample-rate', '96000'], 'mp3 cannot'), (['generate', 'm', *OUT, '--count', '2'], 'folder'),
    (['generate', 'm', '-o', 'x', '--count', '2', '--seed', str(2**53 - 1)], '--seed'),
    (['generate', 'm', *OUT, '--loop', '--duration', 'auto'], 'a loop needs a length'), (['generate', 'm', *OUT, '--gumbel', '--argmax', 'yes'], 'argmax takes'),
    *[(['generate', 'm', *OUT, '--stitch', 'crossfade', *more], "use 'continue'") for more in (['--loop'], ['--duration', 'auto'])],
    *[(['generate', 'm', *OUT, '--from-sidecar', 'x.json', *more], f'{more[0]}: the settings') for more in (
        ['--seed', '1'], ['--count', '2'], ['--loop'], ['--label', 'x'], ['--temperature', '1'], ['--preset', 'greedy'], ['--overlap-ms', '5'])],
    (['pretrain', 'sounds', '-o', 'b', '--minutes', '1', '--steps', '1'], 'either'), (['pretrain', 'sounds', '-o', 'b.distill'], 'end in .safetensors'),
    (['pretrain', 'sounds', '-o', 'b', '--steps', '0'], '--steps'), (['pretrain', 'sounds'], '--out'),
    (['presets', 'save', 'x', '--top-p', '2'], '--top-p'), (['presets', 'save', 'x', '--gumbel', '--argmax', 'yes'], 'argmax takes'),
    (['presets', 'save', 'x', '--preset', 'wild'], 'no preset'), (['presets', 'save'], 'NAME'), (['presets', 'sing'], 'sing'),
    (['fit', 'sounds', '-o', 'm.wav'], 'end in .distill'), (['encode', 'm', 'a.wav', '-o', 'c.wav'], 'end in .npz'),
    (['fit', 'sounds', '-o', 'm', '--minutes', '1', '--epochs', '1'], 'either'), (['sing'], 'sing'), (['fit', '--loud'], '--loud')]


@pytest.mark.parametrize('args, words', USAGE, ids=lambda o: ' '.join(o) if isinstance(o, list) else '')
def test_wrong_usage_ends_with_2(args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = fails(*args, code=2)
    assert words in text
    assert not list(tmp_path.iterdir())


# --- folders
def tone(path, rate=48_000, n=24_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, 0.3*np.sin(np.arange(n)*0.1), rate)
    return path


@pytest.mark.parametrize('command', ['doctor', 'fit', 'train', 'evaluate', 'bench', 'reconstruct', 'train-prior', 'pretrain'])
@pytest.mark.parametrize('what, words', [('gone', 'there is no'), ('empty', 'no'), ('useless', 'no usable|usable'), ('file', 'is a file')])
def test_folders_that_will_not_do(w, tmp_path, command, what, words):
    folder = tmp_path/what
    if what=='file': tone(folder.with_suffix('.wav')); folder = folder.with_suffix('.wav')
    elif what!='gone': folder.mkdir()
    if what=='useless': (folder/'a.wav').write_text('no sound', encoding='utf-8')
    if command=='reconstruct' and what=='file': pytest.skip('a file is fine')
    out = ['-o', tmp_path/'out']
    args = {'doctor': [folder], 'evaluate': [w.model, folder], 'bench': ['--recipes', folder], 'train-prior': [folder, w.model, *out],
            'reconstruct': [w.model, folder, *out]}.get(command, [folder, *out])
    line = fails(command, *args)
    assert any(o in line for o in words.split('|'))
    assert not list(tmp_path.glob('out*'))


@pytest.mark.parametrize('command', ['doctor', 'fit', 'train'])
def test_one_file_is_not_enough(tmp_path, command):
    tone(tmp_path/'in'/'a.wav')
    assert 'one' in fails(command, tmp_path/'in', *([] if command=='doctor' else ['-o', tmp_path/'m']))


def test_reasons_are_told_when_nothing_can_be_used(tmp_path):
    (tmp_path/'a.wav').write_text('no sound', encoding='utf-8')
    done = run('fit', tmp_path, '-o', tmp_path/'m')
    *before, last = done.stderr.splitlines()
    assert any('a.wav: not a sound file' in o for o in before) and last.startswith('error: ') and 'usable' in last


def test_train_prior_wants_the_folder_of_the_model(w, tmp_path):
    for i in range(3): tone(tmp_path/'in'/f'{i}.wav')
    assert 'Use the folder that the model was made from' in fails('train-prior', tmp_path/'in', w.model, '-o', tmp_path/'m')


# --- model files and codes files
def model_bytes(w, **changes):
    "The model file with another text somewhere in its header."
    data = w.model.read_bytes()
    n = int.from_bytes(data[:8], 'little')
    header = json.loads(data[8:8 + n])
    header['__metadata__'].update(changes)
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, 'little') + head + data[8 + n:]


@pytest.mark.parametrize('command', ['info', 'generate', 'encode', 'decode', 'reconstruct', 'evaluate', 'train-prior'])
@pytest.mark.parametrize('what, words', [
    ('gone', 'there is no file'), ('folder', 'is a folder'), ('text', 'not a Distill model'), ('wav', 'a sound'), ('empty', 'empty'),
    ('half', 'damaged'), ('version 1', 'version 1'), ('newer', 'update it'), ('vae', "'vae'"), ('foreign', 'another program')])
def test_model_files_that_will_not_do(w, tmp_path, command, what, words):
    model = tmp_path/'in'/'m.distill'
    model.parent.mkdir()
    data = {'text': b'this is not a model at all', 'wav': w.one.read_bytes(), 'empty': b'', 'half': w.model.read_bytes()[:-1000],
            'version 1': model_bytes(w, version='1'), 'newer': model_bytes(w, version='3'), 'vae': model_bytes(w, model_type='vae'),
            'foreign': model_bytes(w, format='pt')}
    if what in data: model.write_bytes(data[what])
    if what=='folder': model.mkdir()
    run('encode', w.model, w.one, '-o', tmp_path/'in'/'c.npz') if command=='decode' else None
    args = {'info': [model], 'evaluate': [model, w.sounds], 'train-prior': [w.sounds, model, '-o', tmp_path/'out'],
            'generate': [model, '-o', tmp_path/'out.wav'], 'encode': [model, w.one, '-o', tmp_path/'out.npz'],
            'decode': [model, tmp_path/'in'/'c.npz', '-o', tmp_path/'out.wav'],
            'reconstruct': [model, w.one, '-o', tmp_path/'out.wav']}[command]
    assert words in fails(command, *args)
    assert not list(tmp_path.glob('out*'))


def test_codes_of_another_model(w, tmp_path):
    from distill.model import load_model
    other = load_model(w.model, 'cpu')
    other.model.norm.mean += 1
    other.save(tmp_path/'other.distill')
    run('encode', tmp_path/'other.distill', w.one, '-o', tmp_path/'c.npz')
    assert 'another model' in fails('decode', w.model, tmp_path/'c.npz', '-o', tmp_path/'a.wav')


@pytest.mark.parametrize('what, words', [('gone', 'there is no file'), ('text', 'not a codes file'), ('empty', 'empty'), ('half', 'damaged'),
                                         ('model', 'is a model')])
def test_codes_files_that_will_not_do(w, tmp_path, what, words):
    path = tmp_path/'c.npz'
    run('encode', w.model, w.one, '-o', path)
    if what=='gone': path.unlink()
    else: path.write_bytes({'text': b'no codes', 'empty': b'', 'half': path.read_bytes()[:300], 'model': w.model.read_bytes()}[what])
    assert words in fails('decode', w.model, path, '-o', tmp_path/'a.wav')


def test_no_prior_yet(w, tmp_path):
    run('train', w.sounds, '-o', tmp_path/'m', '--epochs', 1)
    assert 'no prior yet' in fails('generate', tmp_path/'m.distill', '-o', tmp_path/'a.wav')


# --- what a model and a prompt must be for what is asked
@pytest.mark.parametrize('options, words', [
    (['--label', 'trumpets'], 'it knows bells, drums'), (['--temperature', '1,1,1,1,1,1,1'], 'leave out the last 1'),
    (['--prompt', 'no.wav'], 'no.wav'), (['--prompt', '{text}'], 'not a sound'), (['--prompt', '{one}', '--prompt-seconds', '0.01'], 'give more of it'),
    (['--prompt', '{one}', '--duration', '0.2'], 'the prompt alone is'), (['--prompt', '{one}', '--loop'], 'no loop'),
    (['--prompt', '{one}', '--stitch', 'crossfade'], "that needs stitch='continue'"), (['--from-sidecar', 'no.json'], 'no.json'),
    (['--from-sidecar', '{text}'], 'cannot be read'), (['--preset', 'bad'], 'mend or delete')])
def test_what_this_model_cannot_do(w, tmp_path, monkeypatch, options, words):
    monkeypatch.setenv('DISTILL_HOME', str(tmp_path/'home'))
    (tmp_path/'home'/'presets').mkdir(parents=True)
    (tmp_path/'home'/'presets'/'bad.json').write_text('{', encoding='utf-8')
    (tmp_path/'text.wav').write_text('no sound', encoding='utf-8')
    options = [o.format(one=w.one, text=tmp_path/'text.wav') for o in options]
    assert words in fails('generate', w.model, '-o', tmp_path/'out.wav', *options)
    assert not list(tmp_path.glob('out*'))


def test_no_labels_to_choose_from(w, tmp_path):
    from dataclasses import replace
    from distill.model import load_model
    loaded = load_model(w.model, 'cpu')
    cfg = replace(loaded.prior_config, labels=())
    replace(loaded, prior=type(loaded.prior)(cfg), prior_config=cfg).save(tmp_path/'m.distill')
    assert 'it knows none' in fails('generate', tmp_path/'m.distill', '-o', tmp_path/'a.wav', '--label', 'drums')


def test_a_sidecar_and_another_model(w, tmp_path):
    "A clear line, and a way to do it anyway, which leaves the old sidecar alone."
    from distill.model import load_model
    run('generate', w.model, '-o', tmp_path/'a.wav', '--duration', 0.3)
    other = load_model(w.model, 'cpu')
    for p in other.prior.parameters(): p.data += 0.01
    other.save(tmp_path/'other.distill')
    args = ['generate', tmp_path/'other.distill', '--from-sidecar', tmp_path/'a.wav.json', '-o']
    assert 'another one or has learned more since' in fails(*args, tmp_path/'b.wav')
    assert not (tmp_path/'b.wav').exists()
    assert run(*args, tmp_path/'b.wav', '--any-model').exit_code==0
    assert 'is an input' in fails(*args, tmp_path/'a.wav', '--any-model')


def test_a_sidecar_without_its_prompt(w, tmp_path):
    run('generate', w.model, '-o', tmp_path/'a.wav', '--prompt', w.one, '--duration', 0.8)
    args = ['generate', w.model, '--from-sidecar', tmp_path/'a.wav.json', '-o', tmp_path/'b.wav']
    assert 'give the same prompt' in fails(*args)
    assert 'give the same prompt' in fails(*args, '--prompt', tone(tmp_path/'other.wav', n=9000))
    as_long = tone(tmp_path/'other.wav', n=24_000)
    assert sf.info(as_long).frames==sf.info(w.one).frames and 'this is another one' in fails(*args, '--prompt', as_long)
    assert not (tmp_path/'b.wav').exists()
    assert run(*args, '--prompt', as_long, '--any-model').exit_code==0
    old = json.loads((tmp_path/'a.wav.json').read_text(encoding='utf-8'))    # one that was written before there were fingerprints
    del old['prompt_fingerprint']
    (tmp_path/'a.wav.json').write_text(json.dumps(old), encoding='utf-8')
    assert run(*args, '--prompt', w.one).exit_code==0 and (tmp_path/'b.wav').read_bytes()==(tmp_path/'a.wav').read_bytes()
    assert 'give the same prompt' in fails(*args, '--prompt', tone(tmp_path/'other.wav', n=9000))


def test_a_prompt_that_a_sidecar_does_not_want(w, tmp_path):
    run('generate', w.model, '-o', tmp_path/'a.wav', '--duration', 0.3)
    args = ['generate', w.model, '--from-sidecar', tmp_path/'a.wav.json', '-o', tmp_path/'b.wav', '--prompt', w.one]
    for more in [], ['--any-model']: assert 'did not go on from one' in fails(*args, *more, code=2)
    assert not (tmp_path/'b.wav').exists()


def test_sidecars_of_other_things(w, tmp_path):
    for text, words in (('[]', 'does not describe'), ('{"made_by": "hand"}', 'does not describe'), ('{"made_by": "prior", "sampling": 3}', 'another')):
        (tmp_path/'a.json').write_text(text, encoding='utf-8')
        assert words in fails('generate', w.model, '--from-sidecar', tmp_path/'a.json', '-o', tmp_path/'b.wav')


@pytest.mark.parametrize('args, words', [(['save', 'default'], 'built in'), (['save', '../x'], 'cannot be called'), (['remove', 'gone'], 'no preset'),
                                         (['remove', 'greedy'], 'built in')])
def test_presets_that_cannot_be(tmp_path, monkeypatch, args, words):
    monkeypatch.setenv('DISTILL_HOME', str(tmp_path))
    assert words in fails('presets', *args) and not list(tmp_path.rglob('*.json'))


# --- outputs
OUTPUTS = {'fit': (['{sounds}'], 'm.distill'), 'pretrain': (['{sounds}'], 'b.safetensors'), 'train': (['{sounds}'], 'm.distill'), 'train-prior': (['{sounds}', '{model}'], 'm.distill'),
           'generate': (['{model}'], 'a.wav'), 'encode': (['{model}', '{one}'], 'c.npz'), 'decode': (['{model}', '{codes}'], 'a.wav'),
           'reconstruct': (['{model}', '{one}'], 'a.wav')}


@pytest.mark.parametrize('command', OUTPUTS)
@pytest.mark.parametrize('what, words', [('no folder', 'there is no folder'), ('a file as folder', 'not a folder'), ('a folder in the way', 'in the way'),
                                         ('read only', 'not allowed')])
def test_outputs_are_checked_before_the_work(w, tmp_path, monkeypatch, command, what, words):
    "Reading the collection, or training, or sampling, would fail this test."
    import distill.base, distill.dataset, distill.pipeline
    args, name = OUTPUTS[command]
    run('encode', w.model, w.one, '-o', tmp_path/'codes.npz')
    def too_late(*a, **k): raise AssertionError('the work has begun')
    for module, function in ((distill.dataset, 'load_collection'), (distill.base, 'pretrain'), (distill.pipeline, 'generate_clips')):
        monkeypatch.setattr(module, function, too_late)
    out = tmp_path/'out'/name
    if what=='a file as folder': out.parent.write_text('', encoding='utf-8')
    if what=='a folder in the way' and name=='a.wav' and command=='generate': pytest.skip('that folder would take the file')
    if what=='a folder in the way': out.mkdir(parents=True)
    if what=='read only':
        out.parent.mkdir()
        def refused(*a, **k): raise PermissionError(13, 'Permission denied')
        monkeypatch.setattr(cli.tempfile, 'TemporaryFile', refused)    # root may write anywhere
    args = [a.format(sounds=w.sounds, model=w.model, one=w.one, codes=tmp_path/'codes.npz') for a in args]
    assert words in fails(command, *args, '-o', out)


def test_no_input_is_overwritten(w, tmp_path):
    sound = tone(tmp_path/'a.wav')
    before = sound.read_bytes()
    assert 'is an input' in fails('reconstruct', w.model, sound, '-o', sound)
    (tmp_path/'sub').mkdir()
    assert 'is an input' in fails('reconstruct', w.model, sound, '-o', tmp_path/'sub'/'..'/'a.wav')
    assert 'inside' in fails('reconstruct', w.model, tmp_path, '-o', tmp_path)
    assert 'inside' in fails('reconstruct', w.model, tmp_path, '-o', tmp_path/'sub')
    codes = tmp_path/'c.npz'
    codes.write_bytes(w.model.read_bytes())    # a model of a strange name
    assert 'is an input' in fails('encode', codes, sound, '-o', codes)
    assert sound.read_bytes()==before and codes.read_bytes()==w.model.read_bytes()


@pytest.mark.skipif(os.name=='nt', reason='no limit on the size of files on Windows')
@pytest.mark.parametrize('command', ['train', 'generate'])
def test_disk_full_leaves_the_old_file(w, tmp_path, command):
    old = tmp_path/('m.distill' if command=='train' else 'a.wav')
    old.write_bytes(b'old')
    args = [command, str(w.model if command=='generate' else w.sounds), '-o', str(old)]
    limit = f'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({10_000}, {10_000}))'
    code = f'import sys; {limit}; from distill.cli import main; sys.argv[1:] = {args + ["--epochs", "1"]*(command=="train")!r}; main()'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, encoding='utf-8', env=ENV, timeout=120)
    assert done.returncode==1 and 'Traceback' not in done.stderr, done.stderr
    assert 'the disk is full' in done.stderr.splitlines()[-1]
    assert old.read_bytes()==b'old' and len(list(tmp_path.iterdir()))==1


def test_a_device_that_is_not_there(w, tmp_path):
    import torch
    device = next((d for d, there in (('mps', torch.backends.mps.is_available()), ('cuda', torch.cuda.is_available())) if not there), None)
    if device: assert 'not available here' in fails('generate', w.model, '-o', tmp_path/'a.wav', '--device', device)


@pytest.mark.parametrize('options, words', [(['--tensorboard', 'curves'], 'pip install tensorboard'), (['--events', 'gone/log.json'], 'there is no folder')])
@pytest.mark.parametrize('command', ['fit', 'train', 'train-prior'])
def test_where_events_go_is_checked_before_the_folder_is_read(w, tmp_path, monkeypatch, command, options, words):
    import distill.dataset
    def too_late(*a, **k): raise AssertionError('the work has begun')
    monkeypatch.setattr(distill.dataset, 'load_collection', too_late)
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    monkeypatch.chdir(tmp_path)
    assert words in fails(command, w.sounds, *([w.model] if command=='train-prior' else []), '-o', 'm', *options)


@pytest.mark.parametrize('message', ['', 'CUDA out of memory. Tried to allocate 20.00 MiB', 'MPS backend out of memory (MPS allocated: 5.0 GB)',
                                     "[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: you tried to allocate 800000000 bytes."])
def test_too_little_memory(w, tmp_path, monkeypatch, message):
    import distill.pipeline, torch
    def full(*a, **k): raise (RuntimeError if message[:1] in ('M', '[') else torch.OutOfMemoryError)(message)
    monkeypatch.setattr(distill.pipeline, 'generate_clips', full)
    line = fails('generate', w.model, '-o', tmp_path/'a.wav')
    assert 'not enough memory' in line and ('--device cpu' in line)==('CPU' not in message)


def test_what_nobody_thought_of_is_one_line_too(w, tmp_path, monkeypatch):
    import distill.model
    def broken(*a, **k): raise KeyError('surprise')
    monkeypatch.setattr(distill.model, 'read_model_info', broken)
    done = run('info', w.model)
    assert done.exit_code==1 and 'surprise' in done.stderr and 'please report' in done.stderr and done.stderr.count('\n')==1
    monkeypatch.setenv('DISTILL_DEBUG', '1')
    assert isinstance(run('info', w.model).exception, KeyError)


# --- sounds that are strange in every way
@pytest.fixture(scope='module')
def weird(audio_dir):
    folder = audio_dir/'weird'
    files = [f for f in sorted(folder.iterdir()) if f.suffix.lower() in ('.wav', '.flac', '.mp3', '.ogg', '.aiff')]
    return files or pytest.skip('no strange sounds there')


def test_strange_sounds_one_by_one(w, weird, tmp_path):
    "Each is used or named with its reason, by doctor, by what `fit` reads, and by reconstruct."
    for i, path in enumerate(weird):
        folder = tmp_path/str(i)
        folder.mkdir()
        (folder/path.name).write_bytes(path.read_bytes())
        done = run('doctor', folder, '--json')
        about = json.loads(done.stdout)
        assert done.exit_code==1    # none or one is not enough
        if path.name.startswith('._'): assert about['aside']; continue
        file, = about['files']
        assert file['used']==(not file['reason'])
        assert ('one usable' if file['used'] else 'no usable') in about['error']
        assert ('1 usable file' if file['used'] else 'usable') in fails('fit', folder, '-o', tmp_path/'m')
        if file['seconds']>5: continue
        done = run('reconstruct', w.model, folder/path.name, '-o', tmp_path/f'{i}.wav')
        assert done.exit_code==int(not file['used']) and 'Traceback' not in done.stderr
        if not file['used']: assert file['reason'].split(':')[0] in done.stderr
        else: assert sf.info(tmp_path/f'{i}.wav').frames==pytest.approx(file['seconds']*file['sample_rate'], abs=10)


def test_strange_sounds_all_together(w, weird, tmp_path):
    folder = weird[0].parent
    about = json.loads(run('doctor', folder, '--json').stdout)
    assert about['used'] + about['skipped']==about['found']>=len([f for f in weird if f.name[0]!='.'])
    assert all(f['used'] or f['reason'] for f in about['files'])
    from distill.dataset import load_collection
    mels = load_collection(folder).mels
    assert len(mels)==about['used'] and all(m.isfinite().all() for m in mels)


def test_a_name_with_brackets_and_spaces(w, tmp_path):
    sound = tone(tmp_path/'[b] – my sound, ünïcode ☂.wav')
    assert run('reconstruct', w.model, sound, '-o', tmp_path/'out [1].wav').exit_code==0
    assert (tmp_path/'out [1].wav').exists()
