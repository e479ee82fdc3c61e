"""The hook host: the one process that loads people's worker.py and runs what is in it.

``config.py`` and ``payload.py`` are the names that such a file imports, ``worker.py`` what its
``Worker(config).run()`` does here, ``names.py`` and ``load.py`` how the file comes to run.
``describe.py`` turns its configuration into settings, ``handlers.py`` and ``calls.py`` run one
hook, ``hosted.py`` answers whole requests where the file forms the response itself. ``process.py``
is the hands.

Law: user code runs here and nowhere else, once; whatever it does (raise, hang, block, exit) costs
the requests that needed it, and never another process.
"""
