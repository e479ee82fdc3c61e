"""The embedded default: a small model server and a local serverless engine, both real programs.

    python -m supervisor.demo.model    generates text, speaks TGI's and OpenAI's HTTP API
    python -m supervisor.demo.engine   routes, signs with its own RSA key, records reports

They are started as processes beside the worker and speak to it over HTTP only, so nothing of the
worker is bypassed. Both can be told to misbehave (``--fault``, ``POST /demo/fault``): the tests of
the failures use them, and so can anyone who wants to see what the worker does then.

Pure rooms: ``markov``, ``generation``, ``model_api``, ``faults``; ``routing``, ``engine_api``,
``engine_faults``, ``record``. Hands: ``model``, ``desk``, ``sabotage``; ``engine``, ``signing``;
``serving`` for both. Nothing outside this package imports it.
"""
