"What is published: a wheel that holds `distill` and nothing else, and a source archive from which it can be built."
import os, re, shutil, subprocess, sys, tarfile, zipfile
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ConfigParser(delimiters=['='])
CONFIG.read(ROOT/'settings.ini', encoding='utf-8')
SETTINGS = CONFIG['DEFAULT']
SOURCES = 'setup.py settings.ini pyproject.toml MANIFEST.in README.md LICENSE distill nbs tests .ci'.split()


def run(*args, **kw):
    "Runs Python, its user's packages and the repository left aside; returns what it printed."
    env = {k: v for k, v in os.environ.items() if k!='PYTHONPATH'} | {'PYTHONNOUSERSITE': '1'} | kw.pop('env', {})
    done = subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, encoding='utf-8', env=env, **kw)
    assert done.returncode==0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def dist(tmp_path_factory):
    "The folder of a source archive and a wheel, both built from a copy of the tree, without the network."
    copy = tmp_path_factory.mktemp('package')
    skip = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', 'venv')
    for name in SOURCES:
        if (ROOT/name).is_dir(): shutil.copytree(ROOT/name, copy/name, ignore=skip)
        else: shutil.copy(ROOT/name, copy)
    run('-m', 'build', '--sdist', '--wheel', '--no-isolation', '--outdir', copy/'dist', copy, cwd=copy)
    return copy/'dist'


@pytest.fixture(scope='module')
def wheel(dist):
    with zipfile.ZipFile(next(dist.glob('*.whl'))) as z: yield z


@pytest.fixture(scope='module')
def sdist(dist):
    with tarfile.open(next(dist.glob('*.tar.gz'))) as t: yield t


def test_names(dist):
    "One of each, under the name and version of settings.ini; old setuptools keeps the hyphen in the archive's name."
    version = SETTINGS['version']
    names = sorted(p.name.replace('distill-audio', 'distill_audio') for p in dist.iterdir())
    assert names==[f'distill_audio-{version}-py3-none-any.whl', f'distill_audio-{version}.tar.gz']


def test_wheel_holds_distill_only(wheel):
    info = f"distill_audio-{SETTINGS['version']}.dist-info"
    assert {n.split('/')[0] for n in wheel.namelist()}=={'distill', info}
    want = {p.relative_to(ROOT).as_posix() for ending in ('py', 'safetensors', 'js', 'css') for p in (ROOT/'distill').rglob(f'*.{ending}')}
    assert {'distill/__main__.py', 'distill/editor.js', 'distill/editor.css'} <= want
    assert {n for n in wheel.namelist() if n.startswith('distill/')}==want


def test_wheel_is_small(dist): assert next(dist.glob('*.whl')).stat().st_size < 15e6    # the base model and all


def test_wheel_metadata(wheel):
    info = f"distill_audio-{SETTINGS['version']}.dist-info"
    meta = Parser().parsestr(wheel.read(f'{info}/METADATA').decode())
    assert meta['Name']=='distill-audio' and meta['Version']==SETTINGS['version']
    assert meta['Requires-Python']=='>=' + SETTINGS['min_python']
    needs = [o for o in meta.get_all('Requires-Dist') if 'extra ==' not in o]
    assert len(needs)==len(SETTINGS['requirements'].split())
    assert any(re.match(r'torch\b.*<2\.12', o) for o in needs)
    assert meta.get_all('Provides-Extra')==['dev']
    assert not re.search(r'\]\((?!https?:|#|mailto:)', meta.get_payload()), 'a link that only works in the repository'
    assert 'distill = distill.cli:main' in wheel.read(f'{info}/entry_points.txt').decode().replace('distill=', 'distill = ')


def test_sdist_has_what_setup_and_readme_need(sdist):
    names = {n.split('/', 1)[1] for n in sdist.getnames() if '/' in n}
    assert {'setup.py', 'settings.ini', 'pyproject.toml', 'README.md', 'LICENSE'} <= names
    readme = (ROOT/'README.md').read_text(encoding='utf-8')
    pictures = set(re.findall(r'!\[[^\]]*\]\((nbs/[^)]+)\)|src="(nbs/[^"]+)"', readme))
    assert {a or b for a, b in pictures} <= names
    assert not [n for n in names if n.startswith(('tests/', '.', 'build/'))]


def test_sdist_makes_the_same_wheel(dist, wheel, tmp_path):
    run('-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-index', '--no-build-isolation', '--wheel-dir', tmp_path,
        next(dist.glob('*.tar.gz')))
    with zipfile.ZipFile(next(tmp_path.glob('*.whl'))) as again: assert set(again.namelist())==set(wheel.namelist())


def test_installed_wheel_imports(dist, tmp_path):
    "Installed elsewhere, the package is the wheel's, knows its version, and imports no tool of ours."
    run('-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', '--no-compile', '--target', tmp_path/'lib',
        next(dist.glob('*.whl')))
    code = 'import sys, distill; print(distill.__file__, distill.__version__, *{"nbdev", "fastcore"} & set(sys.modules))'
    path, version, *tools = run('-c', code, cwd=tmp_path, env={'PYTHONPATH': str(tmp_path/'lib')}).split()
    assert Path(path).resolve().parent==(tmp_path/'lib/distill').resolve()
    assert version==SETTINGS['version'] and tools==[]


def test_license_is_apache_2():
    text = (ROOT/'LICENSE').read_text(encoding='utf-8')
    assert 'Apache License' in text and 'Version 2.0, January 2004' in text and 'END OF TERMS AND CONDITIONS' in text
