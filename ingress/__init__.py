"""The ingress: the instance's only door.

One or more processes share one port. Each terminates HTTP and TLS, authenticates and validates
every request, submits it as a job to the adapter, streams the answer back, and keeps the accounts
that the reporter turns into load. It never talks to the model server and never decides order.
"""
