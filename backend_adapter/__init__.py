"""The adapter: THE queue, dispatch, the connections to the model server, readiness, benchmark.

One process. It takes validated jobs from every ingress process over the jobs socket, decides their
order, and carries the model server's answers back under credit. It never speaks to clients and
never posts to the engine.
"""
