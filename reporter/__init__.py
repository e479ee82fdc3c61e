"""The reporter: load from events, the reports to the serverless engine, metrics, health pages.

It sits on no request's path. It is the only process that talks to the engine: it also fetches the
engine's public key and hands it to every ingress process.
"""
