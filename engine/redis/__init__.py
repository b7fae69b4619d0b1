"""How commands are done on Redis Cluster, or on one Redis with replicas; `engine/redis/engine.py` puts it together."""
