"Distil a folder of your own sounds into a model that makes new ones"
__version__ = "0.1.0"
__all__ = ['Distill']


def __getattr__(name):
    "`distill.Distill` is imported when somebody asks for it, so that `import distill` and `distill --help` are fast"
    if name != 'Distill': raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from distill.api import Distill
    return Distill


def __dir__(): return sorted([*globals(), *__all__])
