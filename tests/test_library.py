"The library: what it remembers, what it does when files go or change, and that several processes lose nothing."
import json, os, shutil, sqlite3, subprocess, sys, threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

import distill.cli as cli
from distill.api import Distill
from distill.audio import fold_name
from distill.library import Library, LibraryError, _opened, data_folder, find_model, register_model
from distill.model import ModelFileError, load_model, save_model
from distill.vqvae import ConvVQVAE, VQVAEConfig

ROOT = Path(__file__).resolve().parent.parent
TINY = VQVAEConfig(codebook_size=16, n_quantizers=2, channels=(2, 4, 4, 4), code_dim=4)
ABOUT = dict(name='my sounds', created='2026-11-01T10:00:00+00:00', seconds=12.5, minutes=3.0,
             files=dict(train=['a.wav', 'b.wav'], valid=['c.wav']), scores=dict(log_mel_l1=0.31, bits_per_code=4.5, unigram_bits_per_code=6.0))


@pytest.fixture(scope='module')
def made(tmp_path_factory): return save_model(tmp_path_factory.mktemp('m')/'made.distill', ConvVQVAE(TINY).eval(), metadata=ABOUT)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    "A folder of this test's own for what Distill keeps about a user."
    monkeypatch.setenv('DISTILL_HOME', str(tmp_path/'home'))
    return tmp_path/'home'


@pytest.fixture
def put(made, tmp_path):
    "Makes a copy of the model under a name, in a folder."
    def put(name, folder='.'):
        (tmp_path/folder).mkdir(exist_ok=True)
        return Path(shutil.copy(made, tmp_path/folder/f'{name}.distill'))
    return put


def run(*args): return CliRunner().invoke(cli.app, [str(a) for a in args], prog_name='distill')


# --- where it is
@pytest.mark.parametrize('platform, env, end', [
    ('linux', dict(XDG_DATA_HOME='/data'), '/data/distill'), ('linux', dict(XDG_DATA_HOME='data'), '/me/.local/share/distill'),
    ('linux', {}, '/me/.local/share/distill'), ('darwin', {}, '/me/Library/Application Support/distill'),
    ('win32', dict(LOCALAPPDATA='/local'), '/local/distill'), ('win32', {}, '/me/AppData/Local/distill'),
    ('linux', dict(DISTILL_HOME='/here', XDG_DATA_HOME='/data'), '/here')])
def test_where_it_lies(monkeypatch, platform, env, end):
    if os.name=='nt': end, env = end.lstrip('/'), env    # there, what begins with / is relative to a drive
    for name in 'DISTILL_HOME', 'XDG_DATA_HOME', 'LOCALAPPDATA': monkeypatch.delenv(name, raising=False)
    for name, value in env.items(): monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, 'platform', platform)
    monkeypatch.setattr(Path, 'home', lambda: Path('/me'))
    assert data_folder().as_posix().endswith(end)


@pytest.mark.parametrize('about', [dict(files=83), dict(files=dict(train=5, valid=['a.wav'])), dict(files=['a.wav']), dict(files=None, scores=[1])])
def test_metadata_of_another_shape(tmp_path, about):
    path = save_model(tmp_path/'a.distill', ConvVQVAE(TINY).eval(), metadata=about)
    entry = Library().add(path)
    assert Library().list()==[entry] and entry.files==('valid' in str(about)) and entry.scores=={}


def test_names_in_either_form_of_an_accent(put):
    library, one, other = Library(), put('one'), put('other')
    library.add(one, 'Ko\u0308rnig')
    assert library.get('körnig').path==one and [e.path for e in library.find('KÖRNIG')]==[one]
    with pytest.raises(LibraryError, match='is the name of'): library.add(other, 'Körnig')
    assert library.rename('körnig', 'Körnig').name=='Körnig'


def test_a_library_from_before_accents_were_one_name(put, home):
    "Then, names were folded by case alone: two that are one name now may be there"
    library, first, second = Library(), put('first'), put('second')
    for path in (first, second): library.add(path)
    with sqlite3.connect(home/'library.db') as db:
        for name, path in (('Ko\u0308rnig', first), ('K\u00f6rnig', second)):
            db.execute('update models set folded = ?, name = ? where path = ?', (name.casefold(), name, str(path)))
    db.close()
    assert library.get('körnig').path in (first, second) and len(library)==2
    for path in (first, second): os.utime(path, (1, 1))                    # read again, and written
    assert sorted(fold_name(e.name) for e in library.list())==['körnig', 'körnig 2']
    assert len({library.get(e.name).path for e in library.list()})==2
    for e in library.list(): library.remove(e.name)
    assert not library.list()


def test_looking_makes_the_file(home):
    assert Library().list()==[] and (home/'library.db').is_file() and len(Library())==0


# --- what it remembers
def test_everything_about_a_model(put):
    entry = Library().add(put('mine'))
    about = entry.to_dict()
    assert about==json.loads(json.dumps(about)) and about['exists'] is True and about['name']=='mine' and about['source']=='my sounds'
    assert (entry.files, entry.seconds, entry.minutes, entry.scores, entry.has_prior)==(3, 12.5, 3.0, ABOUT['scores'], False)
    assert entry.bytes==entry.path.stat().st_size and entry.created==ABOUT['created'] and entry.added>'2026'
    assert Library().get('MINE')==entry and Library().list()==[entry]


@pytest.mark.parametrize('metadata', [{}, dict(files=None, scores=None, seconds='long', minutes=None, name=7)])
def test_a_model_that_says_little(tmp_path, metadata):
    entry = Library().add(save_model(tmp_path/'x.distill', ConvVQVAE(TINY).eval(), metadata=metadata))
    assert (entry.name, entry.files, entry.seconds, entry.scores)==('x', 0, 0.0, {}) and Library().list()==[entry]
    assert run('library', 'list').exit_code==0


def test_newest_first(tmp_path):
    for day in 3, 1, 2: Library().add(save_model(tmp_path/f'{day}.distill', ConvVQVAE(TINY), metadata=dict(created=f'2026-01-0{day}')))
    assert [e.name for e in Library()]==['3', '2', '1']


def test_relative_paths_and_home(put, monkeypatch, tmp_path):
    put('mine')
    monkeypatch.chdir(tmp_path)
    assert Library().add('mine.distill').path==tmp_path/'mine.distill'
    monkeypatch.setenv('HOME', str(tmp_path)), monkeypatch.setenv('USERPROFILE', str(tmp_path))
    Library().add('~/mine.distill')
    assert len(Library())==1


def test_files_that_change_go_and_come_back(put, tmp_path):
    path, library = put('mine'), Library()
    before = library.add(path, name='keep this name')
    save_model(path, ConvVQVAE(TINY), metadata=dict(ABOUT, scores=dict(log_mel_l1=0.1)))
    os.utime(path, (1, 1))
    after, = library.list()
    assert (after.name, after.added, after.scores)==('keep this name', before.added, dict(log_mel_l1=0.1)) and after.weights!=before.weights
    away = path.rename(tmp_path/'away')
    assert not library.get('keep this name').exists and library.list()==[after]
    path.write_text('something else', encoding='utf-8')
    assert library.list()==[after]
    away.replace(path)
    assert library.get('keep this name').exists
    assert library.add(path)==library.get('keep this name') and len(library)==1


# --- names
def test_names(put):
    library = Library()
    first, second, third = library.add(put('a')), library.add(put('A', 'x')), library.add(put('a', 'y'))
    assert [first.name, second.name, third.name]==['a', 'A 2', 'a 3']
    with pytest.raises(LibraryError, match='is the name of'): library.add(third.path, name='a 2')
    assert library.rename('a 3', 'Ünï  code').name=='Ünï code' and library.get('ÜNÏ CODE').path==third.path
    assert library.rename('ünï code', 'Ünï Code').name=='Ünï Code'
    with pytest.raises(LibraryError, match='is the name of'): library.rename('a', 'A 2')
    assert library.add(first.path, name='b').name=='b' and len(library)==3    # add renames what is there
    assert library.add(put('x'*100)).name=='x'*100 and len(library.add(put('x'*100, 'x')).name)<=100


@pytest.mark.parametrize('name', ['', '  ', 'a/b', 'a\\b', 'x'*101, 'a\x00b', 'a\x1bb'])
def test_what_is_no_name(put, name):
    with pytest.raises(LibraryError, match='is no name for a model'): Library().add(put('mine'), name=name)
    Library().add(put('mine'))
    with pytest.raises(LibraryError, match='is no name for a model'): Library().rename('mine', name)


def test_near_misses(put):
    for name in 'kick drums', 'snare drums', 'rain': Library().add(put(name))
    for asked, words in ('kick drum', "did you mean 'kick drums'"), ('drums', "'kick drums' or 'snare drums'"), ('zzz', 'list them with'):
        with pytest.raises(LibraryError, match=words): Library().get(asked)
    assert [e.name for e in Library().find('DRUMS kick')]==['kick drums'] and len(Library().find('my sounds'))==3


# --- forgetting
def test_remove_leaves_the_file_alone(put):
    path = put('mine')
    Library().add(path)
    assert Library().remove('mine').path==path and path.is_file() and Library().list()==[]
    Library().add(path)
    Library().remove('mine', delete_file=True)
    assert not path.exists() and Library().list()==[]
    with pytest.raises(LibraryError, match='has no model'): Library().remove('mine')


def test_a_file_that_cannot_be_deleted_stays_on_the_list(put, monkeypatch):
    Library().add(put('mine'))
    def refuse(*_, **__): raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr(Path, 'unlink', refuse)
    with pytest.raises(LibraryError, match='cannot be deleted'): Library().remove('mine', delete_file=True)
    assert len(Library())==1


# --- what is no model, what is no library
def test_no_model(tmp_path):
    (tmp_path/'a.wav').write_bytes(b'RIFFxxxx')
    with pytest.raises(ModelFileError, match='a sound'): Library().add(tmp_path/'a.wav')
    with pytest.raises(ModelFileError, match='there is no file'): Library().add(tmp_path/'gone.distill')
    assert Library().list()==[]


@pytest.mark.parametrize('content, words', [('text', 'damaged, or not a library'), ('folder', 'cannot be used'), ('newer', 'newer Distill')])
def test_no_library(put, home, content, words):
    path = home/'library.db'
    home.mkdir()
    if content=='folder': path.mkdir()
    elif content=='newer':
        db = sqlite3.connect(path)
        db.execute('pragma user_version = 99')
        db.commit(), db.close()
    else: path.write_bytes(b'these are words, and no tables'*50)
    with pytest.raises(LibraryError, match=words): Library().list()
    mine = put('mine')
    with pytest.warns(UserWarning, match='is saved, but not in the library'): assert register_model(mine) is None
    done = run('library', 'list', '--json')
    assert done.exit_code==1 and words in json.loads(done.stdout)['error']


def test_a_folder_that_cannot_be(home):
    home.write_text('a file', encoding='utf-8')
    with pytest.raises(LibraryError, match='DISTILL_HOME'): Library().list()


def test_who_finds_it_locked_waits_and_then_says_so(put):
    library, path = Library(), put('mine')
    library.list()
    lock = sqlite3.connect(library.path, isolation_level=None, check_same_thread=False)
    lock.execute('begin immediate')
    with pytest.raises(LibraryError, match='locked'):
        with _opened(library.path, 0.1): pass
    threading.Timer(0.3, lock.execute, ['commit']).start()
    assert library.add(path).name=='mine'
    lock.close()


# --- several at once
ADD = """import sys, time
from pathlib import Path
from distill.library import Library
start, paths = Path(sys.argv[1]), sys.argv[2:]
print('ready', flush=True)
while not start.exists(): time.sleep(0.005)
for p in paths: Library().add(p)"""


def test_two_processes_that_register_200_models_at_once_lose_none(put, tmp_path):
    paths, start = [put('same', f'{i}') for i in range(200)], tmp_path/'start'
    env = dict(os.environ, PYTHONPATH=str(ROOT), PYTHONUTF8='1', OMP_NUM_THREADS='1')
    workers = [subprocess.Popen([sys.executable, '-c', ADD, str(start), *map(str, paths[i::2])], env=env, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True) for i in range(2)]
    for w in workers: assert w.stdout.readline().strip()=='ready'
    start.touch()
    done = [w.communicate(timeout=240) for w in workers]
    assert [w.returncode for w in workers]==[0, 0], [err for _, err in done]
    entries = Library().list()
    assert {e.path for e in entries}==set(paths) and len(entries)==200
    assert {e.name for e in entries}=={'same', *(f'same {i}' for i in range(2, 201))}


# --- where a file is expected
def test_a_file_comes_first(put, tmp_path, monkeypatch):
    inside = Library().add(put('mine', 'deep'))
    monkeypatch.chdir(tmp_path)
    assert find_model('mine')==inside.path
    (tmp_path/'mine').write_text('a file', encoding='utf-8')
    assert find_model('mine')==Path('mine')
    with pytest.raises(ModelFileError, match="no file mien, and the library has no model 'mien': did you mean 'mine'"): find_model('mien')
    inside.path.unlink(), (tmp_path/'mine').unlink()
    with pytest.raises(ModelFileError, match='is gone from'): find_model('mine')


def test_the_ending_may_be_left_out(put, tmp_path, monkeypatch):
    "Before the library is asked, which may have another project's model of that name."
    other, mine = Library().add(put('mine', 'another project')), put('mine', 'here')
    monkeypatch.chdir(mine.parent)
    assert find_model('mine')==Path('mine.distill') and find_model(tmp_path/'here'/'mine')==mine
    (mine.parent/'mine').mkdir()    # such as a folder of sounds
    assert find_model('mine')==Path('mine.distill')
    assert json.loads(run('info', 'mine', '--json').stdout)['path']=='mine.distill'
    mine.unlink(), (mine.parent/'mine').rmdir()
    assert find_model('mine')==other.path


def test_distill_saves_into_it_and_loads_from_it(made, tmp_path):
    d = Distill(load_model(made, 'cpu'))
    d.save(tmp_path/'one.distill')
    d.save(tmp_path/'two.distill', library=False)
    assert [e.name for e in Library()]==['one']
    assert Distill.load('One', device='cpu').info()['path']==str(tmp_path/'one.distill')
    with pytest.raises(ModelFileError, match='did you mean'): Distill.load('on', device='cpu')


# --- the commands
def test_commands(put, tmp_path):
    (tmp_path/'models').mkdir()
    for name in 'one', 'two': put(name, 'models')
    done = run('library', 'add', tmp_path/'models', '--json')
    assert done.exit_code==0 and [m['name'] for m in json.loads(done.stdout)['models']]==['one', 'two']
    assert run('library', 'rename', 'two', 'second').exit_code==0
    (tmp_path/'models'/'one.distill').unlink()
    text = run('library', 'list').stdout
    assert 'second' in text and '3 files, 12.5 s' in text and '0.31 nats' in text and 'GONE FROM' in text
    found = json.loads(run('library', 'list', 'SECOND', '--json').stdout)
    assert [m['name'] for m in found['models']]==['second'] and found['library'].endswith('library.db')
    assert 'no model fits' in run('library', 'list', 'zzz').stdout
    assert run('info', 'second').exit_code==0 and 'my sounds' in run('info', 'Second').stdout
    removed = json.loads(run('library', 'remove', 'second', '--delete-file', '--json').stdout)
    assert removed['deleted'] and not (tmp_path/'models'/'two.distill').exists()
    assert run('library', 'remove', 'one').exit_code==0 and 'no models yet' in run('library', 'list').stdout


def test_one_damaged_file_keeps_none_of_the_others_out(put, tmp_path):
    for name in 'a', 'b', 'c': put(name, 'models')
    (tmp_path/'models'/'b.distill').write_bytes(b'half of a model')
    done = run('library', 'add', tmp_path/'models', tmp_path/'gone.distill', '--json')
    told = json.loads(done.stdout)
    assert done.exit_code==1 and '2 of 4 files' in told['error'] and len(told['details'])==2
    assert [m['name'] for m in told['models']]==['a', 'c'] and sorted(e.name for e in Library())==['a', 'c']
    assert [Path(o['file']).name for o in told['failed']]==['b.distill', 'gone.distill'] and 'not a Distill model' in told['failed'][0]['reason']
    done = run('library', 'add', tmp_path/'models')
    assert done.exit_code==1 and 'c.distill' in done.stdout and 'b.distill is not a Distill model' in done.stderr
    alone = run('library', 'add', tmp_path/'models'/'b.distill')
    assert alone.exit_code==1 and alone.stderr.startswith('error: ') and 'not a Distill model' in alone.stderr


@pytest.mark.parametrize('args, code, words', [
    (['list', '--wrong'], 2, 'No such option'), (['add'], 2, 'Missing argument'), (['add', 'gone.distill'], 1, 'there is no file'),
    (['add', '.'], 1, 'no .distill file'), (['remove', 'gone'], 1, 'has no model'), (['rename', 'gone', 'x'], 1, 'has no model')])
def test_wrong_commands(tmp_path, monkeypatch, args, code, words):
    monkeypatch.chdir(tmp_path)
    done = run('library', *args)
    assert done.exit_code==code and words in done.stderr, done.stderr


def test_a_name_where_a_model_is_expected(put):
    Library().add(put('mine'))
    done = run('info', 'main', '--json')
    assert done.exit_code==1 and "did you mean 'mine'" in json.loads(done.stdout)['error']
    assert json.loads(run('info', 'mine', '--json').stdout)['model_type']=='vqvae'
