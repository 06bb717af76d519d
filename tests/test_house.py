"""The rules of the house, read from the source: what may import what, how large things may be, what is never stored.

Each rule is a function from source to a list of complaints, so that the last test here can show that each one bites.
"""
import ast, json, re, subprocess, sys
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
NBS = {p.relative_to(ROOT/'nbs').as_posix(): p for p in sorted((ROOT/'nbs').rglob('*.ipynb'))
       if '.ipynb_checkpoints' not in p.parts}
NUMBERED = [o for o in NBS if re.match(r'\d\d[a-z]?_\w+\.ipynb$', o)]
MODULES = {p.stem: p.read_text(encoding='utf-8') for p in sorted((ROOT/'distill').glob('*.py'))}
SCRIPTS = sorted([ROOT/'setup.py', *ROOT.glob('.ci/*.py'), *ROOT.glob('tests/**/*.py')])
CONFIG = ConfigParser(delimiters=['='])
CONFIG.read(ROOT/'settings.ini', encoding='utf-8')
SETTINGS = CONFIG['DEFAULT']

FORBIDDEN = {'fastcore': 'dev only', 'nbdev': 'dev only', 'execnb': 'dev only', 'pkg_resources': 'gone from setuptools',
             'torchcodec': 'soundfile reads sound', **{f'torchaudio.{o}': 'soundfile reads and writes sound' for o in
                 ('load', 'save', 'info', 'io', 'backend', 'load_with_torchcodec', 'save_with_torchcodec')},
             **{o: 'no pickle' for o in ('pickle', 'cloudpickle', 'dill', 'shelve', 'joblib', 'torch.load', 'torch.save')},
             **{o: 'nothing is downloaded' for o in ('torch.hub', 'torchaudio.pipelines', 'torchaudio.datasets')}}
LAZY = {'matplotlib', 'IPython', 'librosa', 'transformers', 'ipywidgets', 'anywidget'}    # slow to import, or optional
WIDGETS = {'ipywidgets', 'anywidget'}    # what controls, editor and panels are made of
UNIX = {'resource', 'fcntl', 'termios', 'pwd', 'grp'}
PEERS = {'transformers'}    # compared with where it is installed, never required


# --- reading source
def nodes(source, functions=True):
    "Every node of `source`; without those inside functions if `functions` is False: what runs on import."
    todo = [ast.parse(source)]
    while todo:
        node = todo.pop()
        yield node
        if functions or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            todo.extend(ast.iter_child_nodes(node))


def imports(source, functions=True):
    "What `source`, a module of `distill`, imports, as dotted names: `from a.b import c` is a.b.c."
    for node in nodes(source, functions):
        if isinstance(node, ast.Import): yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ['distill'] if node.level else []
            yield from ('.'.join([*base, *filter(None, [node.module]), a.name]) for a in node.names)
        elif isinstance(node, ast.Call) and re.search(r'(^|\.)(import_module|__import__)$', ast.unparse(node.func)):
            name = node.args[0].value if isinstance(node.args[0], ast.Constant) else '?'
            yield 'distill' + name if name.startswith('.') else name


def uses(source):
    "The dotted names that `source` imports or reaches through an imported name: `ta.load` is torchaudio.load."
    yield from imports(source)
    names = {a.asname or a.name.split('.')[0]: a.name if a.asname else a.name.split('.')[0]
             for n in nodes(source) if isinstance(n, ast.Import) for a in n.names}
    for node in nodes(source):
        if not isinstance(node, ast.Attribute): continue
        head, *rest = ast.unparse(node).split('.')
        if head in names: yield '.'.join([names[head], *rest])


def code_cells(nb):
    "The source of every code cell of the notebook at path `nb`."
    cells = json.loads(nb.read_text(encoding='utf-8'))['cells']
    return [''.join(c['source']) for c in cells if c['cell_type']=='code']


def directive(cell, pattern): return re.search(rf'^#\s*\|\s*(?:{pattern})', cell, re.M)


def python(cell):
    "The statements of a cell, without lines that are IPython's."
    return ast.parse(re.sub(r'^\s*[%!].*$', '', cell, flags=re.M))


# --- the rules for modules
def out_of_order(source, earlier):
    "Modules of the package that `source` imports, not being among the `earlier` ones."
    inside = [o.split('.') for o in imports(source) if o.split('.')[0] in ('distill', '?')]
    return [ '.'.join(o) for o in inside if len(o)<2 or o[1] not in [*earlier, '__version__']]


def forbidden(source):
    found = [f'{o}: {why}' for o in uses(source) for bad, why in FORBIDDEN.items() if o==bad or o.startswith(bad + '.')]
    return found + ['allow_pickle: no pickle' for n in nodes(source) if isinstance(n, ast.keyword)
                    and n.arg=='allow_pickle' and getattr(n.value, 'value', None) is not False]


def eager(source, allowed=()):
    "Slow, optional or Unix-only packages that importing the module would import."
    return [o for o in imports(source, functions=False) if o.split('.')[0] in (LAZY | UNIX) - set(allowed)]


def undeclared(source, required, peers=()):
    "Packages that `source` imports and that installing Distill does not bring; `peers` are fine inside functions."
    def missing(names, known):
        roots = {o.split('.')[0] for o in names} - {'distill', '?'} - set(sys.stdlib_module_names)
        return sorted(o for o in roots if canonicalize_name(o) not in {canonicalize_name(k) for k in known})
    return missing(imports(source, functions=False), required) + missing(imports(source), [*required, *peers])


def no_encoding(source):
    "Reading or writing text in whatever encoding the machine has."
    def is_text(call):
        name = ast.unparse(call.func)
        if name.endswith(('.read_text', '.write_text')): return True
        modes = [a.value for a in [*call.args[1:2], *(k.value for k in call.keywords if k.arg=='mode')]
                 if isinstance(a, ast.Constant)]
        return name=='open' and 'b' not in ''.join(map(str, modes))
    return [ast.unparse(n) for n in nodes(source) if isinstance(n, ast.Call) and is_text(n)
            and 'encoding' not in [k.arg for k in n.keywords]]


def private(source):
    "Names with an underscore that a module takes from another one of ours."
    return [o for o in imports(source) if o.startswith('distill.') and any(p[0]=='_' and p[:2]!='__' for p in o.split('.'))]


def double_on_device(source):
    "Float64 before the way to the CPU: Apple's MPS has none."
    return re.findall(r'\.(?:double\(\)|to\(torch\.float64\))[\w.()]*\.cpu\(\)', source)


# --- the rules for cells and notebooks
def stars(source): return re.findall(r'^\s*from \S+ import \*', source, re.M)


def too_long(cell):
    lines = [o for o in cell.splitlines() if o.strip() and not o.startswith('#|')]
    return [f'{len(lines)} lines: {lines[0]}'] if len(lines)>40 else []


def mixed_imports(cell):
    "An import beside other code: the whole cell would run when the site is built, where nothing above it has run."
    if directive(cell, 'export|eval:\\s*false') or 'nbdev_export()' in cell: return []
    walk = list(ast.walk(python(cell)))
    has = lambda *kinds: any(isinstance(o, kinds) for o in walk)
    return [cell] if has(ast.Import, ast.ImportFrom) and has(ast.Expr, ast.Assign) else []


def stored(text):
    "Sound, widgets, errors and paths of one machine in the outputs of the notebook with this text."
    nb = json.loads(text)
    outputs = json.dumps([c.get('outputs', []) for c in nb['cells']])
    bad = ['data:audio', '<audio', 'audio/', 'vnd.jupyter.widget', '"output_type": "error"', f'{ROOT}/', f'{Path.home()}/']
    return [o for o in bad if o in outputs] + ['widget state'] * ('widgets' in nb.get('metadata', {}))


def broken(requirements):
    "What pip would not understand in a list that is split at white space."
    def ok(text):
        try: return bool(Requirement(text).name)
        except InvalidRequirement: return False
    return [o for o in requirements.split() if not ok(o)]


# --- the tests
REQUIRED = [Requirement(o).name for o in SETTINGS['requirements'].split() if not broken(o)]
DEV = [Requirement(o).name for o in SETTINGS['dev_requirements'].split() if not broken(o)]
ORDER = [m[1] for nb in NUMBERED if (m := re.search(r'^#\s*\|\s*default_exp (\S+)', '\n'.join(code_cells(NBS[nb])), re.M))]
each_module = pytest.mark.parametrize('name', [o for o in MODULES if o!='_modidx'])
each_notebook = pytest.mark.parametrize('nb', NBS)


@each_module
def test_module(name):
    source = MODULES[name]
    earlier = ORDER if name in ('__init__', '__main__') else ORDER[:ORDER.index(name)] if name in ORDER else []
    assert not out_of_order(source, earlier), f'only these come before {name}: {earlier}'
    assert not forbidden(source)
    assert not eager(source, WIDGETS if name in ('controls', 'editor', 'panels') or name.endswith('_panel') else []), 'import it inside the function'
    assert not undeclared(source, REQUIRED, [*DEV, *PEERS]), 'add it to requirements in settings.ini'
    assert not no_encoding(source), "say encoding='utf-8'"
    assert not double_on_device(source), 'first .cpu(), then .double()'
    assert not private(source), 'give it a name without an underscore'
    assert not stars(source)


def test_every_numbered_notebook_exports_one_module():
    assert [re.sub(r'^\d\d[a-z]?_|\.ipynb$', '', nb) for nb in NUMBERED]==ORDER
    assert sorted(ORDER)==sorted(o for o in MODULES if o[0]!='_')


@each_notebook
def test_notebook_source(nb):
    for cell in code_cells(NBS[nb]):
        assert not stars(cell)
        assert not mixed_imports(cell), 'imports want a cell of their own'
        if directive(cell, 'exports?\\b'): assert not too_long(cell)


@each_notebook
def test_notebook_stores_little(nb):
    text = NBS[nb].read_text(encoding='utf-8')
    assert len(text.encode()) < 300_000
    assert not stored(text)


@pytest.mark.parametrize('nb', NUMBERED)
def test_notebook_shape(nb):
    "A title with one line about it first; the export last."
    cells = json.loads(NBS[nb].read_text(encoding='utf-8'))['cells']
    first, last = (''.join(cells[i]['source']) for i in (0, -1))
    assert re.match(r'# [^\n]+\n+> [^\n]+', first)
    assert 'nbdev_export()' in last


def test_pyflakes():
    done = subprocess.run([sys.executable, '-m', 'pyflakes', str(ROOT/'distill'), *map(str, SCRIPTS)],
                          capture_output=True, text=True, encoding='utf-8')
    assert done.returncode==0, done.stdout + done.stderr


def test_scripts():
    for path in SCRIPTS:
        assert not stars(path.read_text(encoding='utf-8')), path


@pytest.mark.parametrize('key', ['requirements', 'dev_requirements'])
def test_requirements(key):
    "pip understands them, none is there twice, and what the tests run with fulfils them."
    assert not broken(SETTINGS[key])
    wanted = [Requirement(o) for o in SETTINGS[key].split()]
    names = [canonicalize_name(o.name) for o in wanted]
    assert len(set(names))==len(names)
    wrong = [f'{o}, and there is {metadata.version(o.name)}' for o in wanted
             if not o.specifier.contains(metadata.version(o.name), prereleases=True)]
    assert not wrong


def test_torch_and_torchaudio_are_of_one_release():
    pins = {o.name: str(o.specifier) for o in map(Requirement, SETTINGS['requirements'].split())}
    assert pins['torch']==pins['torchaudio']!=''


ORDERED = lambda source: out_of_order(source, ['audio'])
DECLARED = lambda source: undeclared(source, ['numpy'], ['librosa'])
NOTEBOOK = lambda output: stored(json.dumps({'cells': [{'outputs': [output]}], 'metadata': {}}))


@pytest.mark.parametrize('rule, good, bad', [
    (ORDERED, 'from distill.audio import load_audio', 'from distill.cli import app'),
    (ORDERED, 'from .audio import load_audio', 'from .cli import app'),
    (ORDERED, 'from . import audio', 'from . import cli'),
    (ORDERED, 'import distill.audio as a', 'import distill.cli as c'),
    (ORDERED, 'from distill import __version__', 'from distill import Distill'),
    (ORDERED, 'import os', 'import distill'),
    (ORDERED, 'def f():\n    from distill.audio import a', 'def f():\n    from distill.cli import a'),
    (ORDERED, 'class A:\n    def f(self):\n        from .audio import a', 'class A:\n    def f(self):\n        from .cli import a'),
    (ORDERED, 'import_module("distill.audio")', 'importlib.import_module("distill.cli")'),
    (ORDERED, 'import_module(".audio", "distill")', 'importlib.import_module(f".{x}", "distill")'),
    (forbidden, 'import typing', 'from fastcore.basics import patch'),
    (forbidden, 'import torchaudio\ntorchaudio.transforms.Resample', 'import torchaudio\ntorchaudio.load("a.wav")'),
    (forbidden, 'import torchaudio as ta\nta.functional', 'import torchaudio as ta\nx = ta.save'),
    (forbidden, 'from torchaudio import functional', 'def f():\n    from torchaudio import load'),
    (forbidden, 'import json', 'def f():\n    import pickle'),
    (forbidden, 'import torch\ntorch.loads', 'import torch\ntorch.load("m.pt")'),
    (forbidden, 'np.load(p, allow_pickle=False)', 'np.load(p, allow_pickle=True)'),
    (eager, 'def f():\n    import matplotlib.pyplot as plt', 'import matplotlib.pyplot as plt'),
    (eager, 'import math', 'try: import resource\nexcept ImportError: resource = None'),
    (DECLARED, 'import os, numpy', 'import pandas'),
    (DECLARED, 'def f(): import librosa', 'import librosa'),
    (no_encoding, 'p.read_text(encoding="utf-8"); open(p, "rb")', 'p.read_text()'),
    (no_encoding, 'open(p, "w", encoding="utf-8")', 'open(p, "w")'),
    (private, 'from .model import load_model\nfrom . import __version__\nfrom os import _exit', 'from .model import _files'),
    (double_on_device, 'x.cpu().double()', 'x.double().cpu()'),
    (double_on_device, 'x.detach().cpu().double().numpy()', 'x.to(torch.float64).detach().cpu()'),
    (stars, 'from a import b', 'def f():\n    from a import *'),
    (too_long, '#| export\n' + 'x = 1\n\n'*40, '#| export\n' + 'x = 1\n'*41),
    (mixed_imports, 'import a\nfrom b import c', 'import a\na.b()'),
    (mixed_imports, '#| export\nimport a\nx = 1', 'def f():\n    import a\nx = 1'),
    (mixed_imports, '%matplotlib inline\nimport a', '#| hide\nimport a\nx = 1'),
    (NOTEBOOK, {'text': 'one'}, {'data': {'text/html': '<audio src="data:audio/wav;base64,">'}}),
    (NOTEBOOK, {'data': {'image/png': 'x'}}, {'data': {'application/vnd.jupyter.widget-view+json': {}}}),
    (NOTEBOOK, {'text': 'sounds/a.wav'}, {'text': f'{ROOT}/sounds/a.wav'}),
    (broken, 'torch>=2.11,<2.12 numpy', 'torch >= 2.11'),
])
def test_each_rule_bites(rule, good, bad):
    assert not rule(good)
    assert rule(bad)
